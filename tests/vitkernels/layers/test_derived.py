"""What is derived from weights: made at every call, kept where a model is frozen and nowhere that it must not be."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import vitkernels
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from vitkernels import layers
from vitkernels.layers import derived, folded_conv

pytestmark = pytest.mark.fast


class Pair(nn.Module):
    """A convolution and a batch norm; folded in evaluation, unless `plain`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)
        self.plain = False

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if self.plain else layers.conv_norm_act(x, self.conv, self.norm)


X = torch.linspace(-1, 2, 2 * 4 * 5 * 5).reshape(2, 4, 5, 5)


def _by_fused_optimizer(pair: Pair) -> None:
    for p in pair.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(pair.parameters(), lr=0.1, fused=True).step()


def _by_uncounted_training(pair: Pair) -> None:
    pair.train().norm.eval()
    pair(X).sum().backward()
    for p in pair.parameters():
        p.data.mul_(1.5)  # as an optimizer does that is not torch's
    pair.eval()


def _by_own_statistics(pair: Pair) -> None:
    pair.norm.train()(pair.conv(3 * X))
    pair.norm.eval()


def _by_data(pair: Pair) -> None:
    pair.conv.weight.data.mul_(1.5)
    pair.norm.running_mean.data.add_(1)


def _by_numpy(pair: Pair) -> None:
    pair.conv.weight.detach().numpy()[:] *= 1.5


def _want(pair: Pair) -> Tensor:
    pair.plain = True
    want: Tensor = pair(X)
    pair.plain = False
    return want


WRITES = [_by_fused_optimizer, _by_uncounted_training, _by_own_statistics, _by_data, _by_numpy]


def _after(write: Callable[[Pair], None], pair: Pair) -> Tensor:
    """What the pair should give after a write, which moves it."""
    before = pair(X)
    pair.requires_grad_(True)
    with torch.inference_mode(False), torch.enable_grad():
        write(pair)
    pair.requires_grad_(False)
    want = _want(pair)
    assert (want - before).abs().max() > 0.01
    return want


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("grads", [True, False])
def test_every_write_is_seen_where_nobody_has_frozen_the_model(write: Callable[[Pair], None], grads: bool) -> None:
    pair = Pair().eval().requires_grad_(False)
    with torch.set_grad_enabled(grads):
        want = _after(write, pair)
        torch.testing.assert_close(pair(X), want)


@pytest.mark.parametrize("write", WRITES)
def test_after_refresh_a_frozen_model_has_seen_every_write(write: Callable[[Pair], None]) -> None:
    pair = Pair().eval().requires_grad_(False)
    vitkernels.freeze(pair)
    with torch.inference_mode():
        want = _after(write, pair)
        vitkernels.refresh(pair)
        torch.testing.assert_close(pair(X), want)


def _by_loading(pair: Pair) -> None:
    torch.manual_seed(5)
    pair.load_state_dict({key: torch.rand(t.shape).to(t.dtype) for key, t in pair.state_dict().items()})


def _by_assigning(pair: Pair) -> None:
    torch.manual_seed(5)
    pair.load_state_dict({key: torch.rand(t.shape).to(t.dtype) for key, t in pair.state_dict().items()}, assign=True)


def _by_other_data(pair: Pair) -> None:
    pair.conv.weight.data = pair.conv.weight.data * 1.5


def _by_foreach(pair: Pair) -> None:
    with torch.no_grad():
        torch._foreach_mul_(list(pair.parameters()), 1.5)


@pytest.mark.parametrize("write", [_by_loading, _by_assigning, _by_other_data, _by_foreach])
def test_a_frozen_model_sees_what_torch_counts(write: Callable[[Pair], None]) -> None:
    pair = Pair().eval()
    vitkernels.freeze(pair)
    with torch.no_grad():
        torch.testing.assert_close(pair(X), _want(pair))
        want = _after(write, pair)
        torch.testing.assert_close(pair(X), want)


def _kept(pair: Pair) -> tuple[Tensor, Tensor]:
    weight, bias = folded_conv(pair.conv, None, pair.norm, torch.float32)
    assert bias is not None
    return weight, bias


def test_kept_only_where_frozen_and_without_gradients() -> None:
    pair = Pair().eval()

    def kept() -> bool:
        return _kept(pair)[0] is _kept(pair)[0]

    with torch.no_grad():
        assert not kept()
        vitkernels.freeze(pair)
        assert kept()
        copied = copy.deepcopy(pair)
        assert _kept(copied)[0] is not _kept(copied)[0]
        with torch.enable_grad():
            assert not kept()
            pair.requires_grad_(False)
            assert not kept()  # a frozen teacher: autograd or a CUDA graph may hold what it was given
        vitkernels.thaw(pair)
        assert not kept()


def test_training_takes_the_promise_of_a_fused_model_back(timm: Any) -> None:
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv

    model = nn.Sequential(DepthwiseSeparableConv(4, 4)).eval()
    with torch.no_grad():
        vitkernels.fuse(model)
        vitkernels.freeze(model)
        model(X)
        for p in model.train().parameters():
            p.data.mul_(1.5)  # as a captured graph of a training step does
        got = model.eval()(X)
        vitkernels.unfuse(model)
        torch.testing.assert_close(got, model(X))


def test_what_is_renewed_is_written_over_the_old_which_a_graph_may_read() -> None:
    pair, other = Pair().eval(), nn.Linear(2, 2)
    vitkernels.freeze(pair)
    with torch.no_grad():
        weight, bias = _kept(pair)
        old = weight.clone()
        pair.conv.weight.mul_(2)
        assert all(a is b for a, b in zip(_kept(pair), (weight, bias), strict=True))
        torch.testing.assert_close(weight, 2 * old)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()  # another model trains
    with torch.no_grad():
        assert _kept(pair)[0] is weight
        for many in range(20):  # more than are kept push nothing out
            derived(pair.conv, f"another {many}", lambda t: t * 2, pair.conv.weight)
        assert _kept(pair)[0] is weight


def test_sharded_parameters_are_refused(gloo: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    pair = Pair().eval()
    fully_shard(pair, mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
    with pytest.raises(ValueError, match=r"conv\.weight is a DTensor"):
        vitkernels.freeze(pair)
    with torch.no_grad():
        pair(X)  # gathers, and leaves plain parameters behind
        with pytest.raises(ValueError, match="the model is sharded"):
            vitkernels.freeze(pair)
        pair.reshard()
        for p in pair.parameters():
            p.mul_(1.5)
        torch.testing.assert_close(pair(X), _want(pair))


@pytest.fixture
def gloo(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_threads_share_what_is_kept() -> None:
    pair = Pair().eval()
    vitkernels.freeze(pair)
    with torch.no_grad():
        want = _want(pair)
    wrong = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(30):
                if number == 0:
                    vitkernels.refresh(pair)
                if (pair(X) - want).abs().max() > 1e-5:
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_one_stream_has_made_is_ready_for_another(device: str) -> None:
    if device == "cpu":
        pytest.skip("a CPU has no streams")
    pair = Pair().eval().cuda()
    vitkernels.freeze(pair)
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.no_grad():
        want = _want(pair.cpu())
        pair.cuda()
        x = X.cuda()
        torch.cuda.synchronize()
        with torch.cuda.stream(first):
            torch.cuda._sleep(100_000_000)
            _kept(pair)
        with torch.cuda.stream(second):
            got = pair(x)
        torch.cuda.synchronize()
    torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-3)


def test_with_gradients_what_autograd_has_saved_stays_as_it_was() -> None:
    pair = Pair().eval().requires_grad_(False)
    vitkernels.freeze(pair)
    x = X.clone().requires_grad_()
    y = pair(x)
    (want,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    pair.conv.weight.data.mul_(2)
    vitkernels.refresh(pair)
    with torch.no_grad():
        pair(x)
    pair(x)
    (got,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(got, want)


def test_a_result_that_is_a_source_is_never_written_to() -> None:
    owner, first, second = nn.Identity(), torch.zeros(3), torch.ones(3)
    vitkernels.freeze(owner)
    with torch.no_grad():
        assert derived(owner, "same", lambda t: t, first) is first
        assert derived(owner, "same", lambda t: t, second) is second
    assert torch.equal(first, torch.zeros(3))


def test_autocast_has_results_of_its_own() -> None:
    linear = nn.Linear(4, 4)
    vitkernels.freeze(linear)

    def make(*_: Tensor) -> Tensor:
        return linear(torch.eye(4))

    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert derived(linear, "made", make, *linear.parameters()).dtype == torch.bfloat16
        assert torch.equal(derived(linear, "made", make, *linear.parameters()), make())


def test_a_pass_with_fake_tensors_leaves_nothing_behind_and_takes_nothing() -> None:
    pair = Pair().eval()
    vitkernels.freeze(pair)

    def mask() -> Tensor:
        return derived(pair, "mask", lambda: torch.zeros(3))

    def fake_pass() -> None:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            pair(mode.from_tensor(X))
            (mask() + mode.from_tensor(torch.ones(3))).sum()

    with torch.no_grad():
        fake_pass()
        assert type(mask()) is Tensor
        assert type(pair(X)) is Tensor
        with FakeTensorMode() as mode:
            (mask() + mode.from_tensor(torch.ones(3))).sum()


def test_function_transforms_derive_for_themselves() -> None:
    pair = Pair().eval()
    vitkernels.freeze(pair)
    with torch.no_grad():
        pair(X)
    parameters = {name: torch.stack((p.detach(), 2 * p.detach())) for name, p in pair.named_parameters()}
    with torch.no_grad():
        both = torch.func.vmap(lambda p: torch.func.functional_call(pair, p, (X,)))(parameters)
        for p in pair.parameters():
            p.mul_(2)
        torch.testing.assert_close(both[1], pair(X))


class Biased(Pair):
    """A fold and an expanded table in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 1))

    def forward(self, x: Tensor) -> Tensor:
        def expand(t: Tensor) -> Tensor:
            return vitkernels.expand_relative_bias(t, (2, 2), torch.float32)

        return super().forward(x).sum() + derived(self.table, "expanded", expand, self.table).sum()


@pytest.mark.parametrize("freezing", [False, True])
def test_compiled_graphs_derive_at_every_call_unless_inductor_freezes_them(freezing: bool) -> None:
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch._inductor.utils import run_and_get_code

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("inductor finds no C++ compiler")
    model = Biased().eval()
    vitkernels.freeze(model)
    torch._dynamo.reset()
    with torch.no_grad(), config.patch(freezing=freezing, fx_graph_cache=False):
        got, code = run_and_get_code(torch.compile(model), X)
        torch.testing.assert_close(got, model(X))
    assert ("rsqrt" in "".join(code)) is not freezing
    assert ("vitkernels" in "".join(code)) is not freezing
