"""The fused bundle in every family that it serves, against eager with the same weights; kernels run interpreted."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitbench.bench import predict, worker
from vitbench.bench.messages import Message, Result
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.catalog import catalog
from vitbench.errors import InputError
from vitbench.models import MODELS, create_model, unserved
from vitbench.models.cmt import CMT, CMTConfig
from vitbench.models.coatnet import CoAtNet, CoAtNetConfig, MBConvConfig
from vitbench.models.convit import ConViT, ConViTConfig
from vitbench.models.convmixer import ConvMixer, ConvMixerConfig
from vitbench.models.efficient_vit import Features
from vitbench.models.efficientnet import EfficientNet, EfficientNetConfig, Stage
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import EAGER, Ops
from vitbench.ops.fused import FUSED, UNSERVED
from vitbench.results.row import Found, Speed
from vitbench.trace.skeleton import replace_tensors
from vitbench.verify import judge
from vitbench.verify.outcome import relative_error, run, without_dropout

pytestmark = pytest.mark.usefixtures("as_forked")

Build = Callable[[Ops], nn.Module]
_STAGES = (Stage(1, 3, 1, 1, 16), Stage(2, 5, 2, 3, 16))
_NET = EfficientNetConfig(0.5, 1.0, dropout=0.2, stages=_STAGES)
_RW = MBConvConfig(
    pool="avg2", stride_in="depthwise", activation="silu", pre_activation=True, squeeze_first=True, output_norm=True,
    expansion=2,
)  # fmt: skip
_COATNET = CoAtNetConfig((16, 16, 32, 32), (1, 1, 1, 1), (8, 8), conv=MBConvConfig(expansion=2))
_COATNET_RW = CoAtNetConfig((16, 16), (1, 2), (8, 8), layout="CC", conv=_RW)
CASES: dict[str, tuple[tuple[int, int], Build]] = {
    "cmt": ((32, 64), lambda ops: CMT(CMTConfig(16, (16, 32, 64, 128), (1, 1, 1, 1), 2, 0.1, 0.1), ops, (32, 64), 10)),
    "coatnet": ((32, 64), lambda ops: CoAtNet(ops, _COATNET, (32, 64), 10)),
    "coatnet_rw": ((16, 16), lambda ops: CoAtNet(ops, _COATNET_RW, (16, 16), 10)),
    "convit": ((32, 48), lambda ops: ConViT(ops, ConViTConfig(4, 16, 1, 1), (32, 48), 10)),
    "convmixer": ((24, 32), lambda ops: ConvMixer(ops, ConvMixerConfig(16, 2, kernel=5, patch=8), 10)),
    "convmixer_relu": ((24, 32), lambda ops: ConvMixer(ops, ConvMixerConfig(16, 1, 7, 8, "relu"), 10)),
    "efficientnet": ((16, 16), lambda ops: EfficientNet(ops, _NET, 10)),
    "efficient_vit": (
        (16, 16),
        lambda ops: nn.Sequential(Features(ops, _NET, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ),
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def pair(name: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Eager and fused with the same weights; statistics and vectors away from what they start as."""
    torch.manual_seed(seed)
    build = CASES[name][1]
    eager, fused = build(EAGER), build(FUSED)
    with torch.no_grad():
        for key, tensor in eager.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.2)
    fused.load_state_dict(eager.state_dict())
    return eager, fused


def image(name: str, batch: int = 2) -> Tensor:
    """channels_last, in which the interpreter has fewer programs to run."""
    x = torch.randn(batch, 3, *CASES[name][0], generator=torch.Generator().manual_seed(1))
    return x.to(memory_format=torch.channels_last)


def differs(eager: nn.Module, fused: nn.Module, x: Tensor, mode: str = "infer", **how: torch.dtype) -> float:
    return relative_error(run(fused, x, mode, **how), run(eager, x, mode, **how))


@pytest.fixture
def tolerance(device: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of outputs in fp32: libraries on a GPU sum in orders of their own."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return judge.FLOOR if device == "cpu" else 10 * judge.FLOOR


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_inference_agrees_with_eager(name: str, layout: str, device: str, tolerance: float) -> None:
    eager, fused = (model.eval().to(device).to(memory_format=LAYOUTS[layout]) for model in pair(name))
    x = image(name).to(device, memory_format=LAYOUTS[layout])
    assert differs(eager, fused, x) < tolerance


@pytest.mark.parametrize("name", [name for name in CASES if name != "efficient_vit"])
def test_training_agrees_with_eager_in_every_gradient_and_statistic(name: str, device: str, tolerance: float) -> None:
    eager, fused = (model.train().to(device) for model in pair(name))
    x = image(name).to(device)
    want = run(eager, x, "train")
    got = run(fused, x, "train")
    assert got.gradients.keys() == want.gradients.keys() == dict(eager.named_parameters()).keys()
    assert relative_error(got, want) < 10 * tolerance
    for model in (eager, fused):
        with without_dropout(model):
            model(x)
    for (key, ours), theirs in zip(fused.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", ["cmt", "coatnet", "convmixer", "efficientnet"])
def test_autocast_and_half_precision_err_no_more_than_eager(name: str, device: str) -> None:
    eager, fused = (model.eval().to(device) for model in pair(name))
    x = image(name).to(device)
    exact = run(copy.deepcopy(eager).double(), x.double(), "infer")
    own = relative_error(run(eager, x, "infer", torch.float16), exact)
    assert differs(eager, fused, x, autocast=torch.float16) < 2 * own
    eager, fused = eager.half(), fused.half()
    own = relative_error(run(eager, x.half(), "infer"), exact)
    assert differs(eager, fused, x.half()) < 2 * own


@pytest.mark.parametrize("name", ["convmixer", "efficientnet"])
@pytest.mark.parametrize("how", ["bf16", "fp16", "autocast"])
def test_training_in_half_precision_errs_no_more_than_eager(name: str, how: str) -> None:
    eager, fused = (model.train() for model in pair(name))
    x = image(name)
    exact = run(copy.deepcopy(eager).double(), x.double(), "train")
    autocast = torch.bfloat16 if how == "autocast" else None
    if autocast is None:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[how]
        eager, fused, x = eager.to(dtype), fused.to(dtype), x.to(dtype)
    own, ours = (relative_error(run(m, x, "train", autocast), exact) for m in (eager, fused))
    assert ours < 2 * own


def test_changed_weights_are_seen_whenever_they_change() -> None:
    eager, fused = (model.eval() for model in pair("coatnet"))
    x = image("coatnet")
    assert differs(eager, fused, x) < judge.FLOOR
    before = run(fused, x, "infer")
    other, _ = pair("coatnet", seed=7)
    state = other.state_dict()
    for model in (eager, fused):
        model.load_state_dict(state)  # in place, after the fused model has folded the old ones
    assert differs(eager, fused, x) < judge.FLOOR
    assert relative_error(run(fused, x, "infer"), before) > 0.01
    for model in (eager, fused):
        model.train()
        with without_dropout(model):
            model(x).square().mean().backward()
        torch.optim.SGD(model.parameters(), lr=0.5).step()
        model.eval()
    assert differs(eager, fused, x) < 1e-4
    for model in (eager, fused):
        model.to(torch.float64).to(torch.float32)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight = nn.Parameter(norm.weight.detach() * 1.5)  # another tensor in the old one's place
    assert differs(eager, fused, x) < 1e-4


def test_what_is_derived_is_in_no_state_copy_or_pickle() -> None:
    eager, fused = (model.eval() for model in pair("coatnet"))
    x = image("coatnet")
    fused(x)
    with torch.inference_mode():
        fused(x)
    assert fused.state_dict().keys() == eager.state_dict().keys()
    eager.load_state_dict(fused.state_dict())
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    eager.load_state_dict(twin.state_dict())
    assert differs(eager, twin, x) < judge.FLOOR
    assert len(pickle.dumps(fused.stages[0])) < 1.1 * len(pickle.dumps(eager.stages[0]))


def test_gradients_flow_in_evaluation_too() -> None:
    eager, fused = (model.eval() for model in pair("convmixer"))
    x = image("convmixer")
    with torch.inference_mode():
        fused(x)  # keeps folded weights, which a graph must not save
    gradients = []
    for model in (eager, fused):
        inputs = x.clone().requires_grad_()
        model(inputs).square().sum().backward()
        gradients.append([inputs.grad, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    inputs = x.clone().requires_grad_()
    fused(inputs).square().sum().backward()
    torch.testing.assert_close(inputs.grad, gradients[0][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "mode"), [("cmt", "infer"), ("coatnet", "infer"), ("coatnet", "train")])
def test_compiles_without_a_graph_break(name: str, mode: str) -> None:
    _, fused = pair(name)
    fused.train(mode == "train")
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    x = image(name)
    want, got = run(fused, x, mode), run(compiled, x, mode)
    assert relative_error(got, want) < 1e-4


def test_every_family_is_served_or_says_why_not() -> None:
    families = {entry.family for entry in catalog().values()}
    served = {
        "cmt",
        "coatnet",
        "coatnet_ablation",
        "coatnet_timm",
        "convit",
        "convmixer",
        "efficientnet",
        "efficient_vit",
    }
    assert families - served == UNSERVED.keys()
    for family in families:
        name = next(name for name, entry in catalog().items() if entry.family == family)
        if family in served:
            assert unserved(name) is None
        else:
            with pytest.raises(InputError, match=f"{name} has no fused implementation: it"):
                create_model(name, "fused")


@pytest.mark.parametrize("name", ["cmt_ti", "coatnet_0", "convit_tiny", "convmixer_768_32", "efficient_vit_b0"])
def test_published_models_run_the_kernels_operators(name: str) -> None:
    entry = catalog()[name]
    with torch.device("meta"):
        model = create_model(name, "fused").eval()
    seen: set[str] = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(func.namespace)
            return func(*args, **(kwargs or {}))

    with FakeTensorMode():
        fake = replace_tensors(model, lambda t: torch.empty(t.shape, dtype=t.dtype))
        with Recorder(), torch.no_grad():
            fake(torch.empty(1, 3, *entry.resolution))
    assert "vitkernels" in seen


def test_fusion_saves_memory_in_training_and_inference() -> None:
    for model, mode, share in (
        ("cmt_s", "train", 0.75),
        ("coatnet_0", "train", 0.85),
        ("cmt_s", "infer", 0.9),
        ("coatnet_0", "infer", 0.8),
    ):
        case = Case(model, "eager", mode, "bf16", "nhwc", (384, 384), 64, "cuda")
        eager, fused = predict.memory_mib(case), predict.memory_mib(replace(case, impl="fused"))
        assert eager is not None
        assert fused is not None
        assert fused < share * eager


def small(kind: str, like: str, monkeypatch: pytest.MonkeyPatch) -> Case:
    """A model small enough for the interpreter, where models are looked up by name."""
    size, build = CASES[kind]
    spec = ModelSpec(lambda ops, resolution, num_classes: build(ops), size, Preprocessing(), 10)
    monkeypatch.setitem(MODELS, f"{kind}_tiny", spec)
    monkeypatch.setitem(catalog(), f"{kind}_tiny", replace(catalog()[like], model=f"{kind}_tiny", resolution=size))
    return Case(f"{kind}_tiny", "fused", "infer", "fp32", "nhwc", size, 1, "cpu")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Case:
    return small("cmt", "cmt_ti", monkeypatch)


def found_of(case: Case) -> Found:
    told: list[Message] = []
    options = SweepOptions(min_time=0.01, max_time=0.02, passes=("latency", "memory"))
    worker.Worker(options, told.append).run_group([case])
    (result,) = (message for message in told if isinstance(message, Result))
    return result.found


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_bench_on_the_cpu_checks_but_never_times_a_stand_in(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_of(replace(small("convmixer", "convmixer_768_32", monkeypatch), mode=mode, batch=2))
    assert (found.status, found.health.valid) == ("ok", False)
    assert "interpreter" in found.reason
    assert found.verified.rel_err <= found.verified.rel_err_limit
    assert (found.speed, found.memory.peak_mem_mib) == (Speed(), None)


def test_bench_without_gpu_or_kernel_says_so(tiny: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "INTERPRETED", False)
    found = found_of(tiny)
    assert found.status == "unsupported"
    assert "need an NVIDIA GPU" in found.reason
    assert found.memory.predicted_mem_mib is not None
    found = found_of(replace(tiny, model="resnet18", resolution=(64, 64)))
    assert found.status == "unsupported"
    assert "no fused kernel serves resnet18" in found.reason


def test_bench_finds_a_wrong_kernel(tiny: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(FUSED, attention=lambda q, k, v, bias: FUSED.attention(q, k, v, 0 * bias))
    monkeypatch.setattr("vitbench.ops.fused.FUSED", wrong)
    found = found_of(tiny)
    assert found.status == "incorrect"
    assert found.speed == Speed()
