"""What is derived from parameters: derived again whenever those have changed, and kept nowhere that it must not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import vitkernels
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from vitkernels import layers
from vitkernels.layers import derived, folded_conv


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


def _by_data_and_refresh(pair: Pair) -> None:
    pair.conv.weight.data.mul_(1.5)
    pair.norm.running_mean.data.add_(1)
    vitkernels.refresh(pair)


@pytest.mark.parametrize(
    "write", [_by_fused_optimizer, _by_uncounted_training, _by_own_statistics, _by_data_and_refresh]
)
@pytest.mark.parametrize("grads", [True, False])
def test_writes_that_torch_does_not_count_are_seen(write: Callable[[Pair], None], grads: bool) -> None:
    pair = Pair().eval()
    with torch.set_grad_enabled(grads):
        pair.requires_grad_(False)
        before = pair(X)
        pair.requires_grad_(True)
        with torch.enable_grad():
            write(pair)
        pair.requires_grad_(False)
        pair.plain = True
        want = pair(X)
        pair.plain = False
        assert (want - before).abs().max() > 0.01
        torch.testing.assert_close(pair(X), want)


def test_a_change_of_mode_renews_what_a_fused_model_keeps(timm: Any) -> None:
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv

    model = nn.Sequential(DepthwiseSeparableConv(4, 4)).eval()
    with torch.no_grad():
        vitkernels.fuse(model)
        model(X)
        for p in model.train().parameters():
            p.data.mul_(1.5)  # as a captured graph of a training step does
        got = model.eval()(X)
        vitkernels.unfuse(model)
        torch.testing.assert_close(got, model(X))


def _kept(pair: Pair) -> tuple[Tensor, Tensor]:
    weight, bias = folded_conv(pair.conv, None, pair.norm, torch.float32)
    assert bias is not None
    return weight, bias


def test_without_gradients_the_new_is_written_over_the_old() -> None:
    pair = Pair().eval()
    with torch.no_grad():
        weight, bias = _kept(pair)
        old = weight.clone()
        pair.conv.weight.mul_(2)
        assert all(a is b for a, b in zip(_kept(pair), (weight, bias), strict=True))
        torch.testing.assert_close(weight, 2 * old)


def test_with_gradients_what_autograd_has_saved_stays_as_it_was() -> None:
    pair = Pair().eval().requires_grad_(False)
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
    with torch.no_grad():
        assert derived(owner, "same", lambda t: t, first) is first
        assert derived(owner, "same", lambda t: t, second) is second
    assert torch.equal(first, torch.zeros(3))


def test_autocast_has_results_of_its_own() -> None:
    linear = nn.Linear(4, 4)

    def make(*_: Tensor) -> Tensor:
        return linear(torch.eye(4))

    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert derived(linear, "made", make, *linear.parameters()).dtype == torch.bfloat16
        assert torch.equal(derived(linear, "made", make, *linear.parameters()), make())


def test_a_pass_with_fake_tensors_leaves_nothing_behind_and_takes_nothing() -> None:
    pair = Pair().eval()

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
    with torch.no_grad():
        pair(X)
    parameters = {name: torch.stack((p.detach(), 2 * p.detach())) for name, p in pair.named_parameters()}
    with torch.no_grad():
        both = torch.func.vmap(lambda p: torch.func.functional_call(pair, p, (X,)))(parameters)
        for p in pair.parameters():
            p.mul_(2)
        torch.testing.assert_close(both[1], pair(X))


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_a_compiled_optimizer_is_traced_once(backend: str) -> None:
    pair = Pair().eval()
    with torch.no_grad():
        pair(X)  # from here on optimizers are watched
    optimizer = torch.optim.SGD(pair.parameters(), lr=torch.tensor(0.1))
    torch._dynamo.reset()
    step = torch.compile(optimizer.step, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            for p in pair.parameters():
                p.grad = torch.ones_like(p)
            step()


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
    torch._dynamo.reset()
    with torch.no_grad(), config.patch(freezing=freezing, fx_graph_cache=False):
        got, code = run_and_get_code(torch.compile(model), X)
        torch.testing.assert_close(got, model(X))
    assert ("rsqrt" in "".join(code)) is not freezing
    assert ("vitkernels" in "".join(code)) is not freezing
