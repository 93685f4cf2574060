"""Random weights must let an output show what any operation of a network does: here each is broken in turn."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitbench.bench.build import Workload
from vitbench.bench.plan import Case
from vitbench.errors import InputError
from vitbench.models import MODELS, create_model, inputs
from vitbench.models.resample import resample_grid
from vitbench.models.weights import SPREAD, enliven
from vitbench.ops.bundle import EAGER
from vitbench.verify import judge
from vitbench.verify.outcome import Outcome, relative_error

OPERATIONS = ("attention", "relative_attention", "gated_attention", "depthwise_conv2d")


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    nn.init.zeros_(model[1].weight)
    model.register_parameter("table", nn.Parameter(torch.zeros(5, 7)))
    model.register_buffer("frozen", torch.ones(600))
    return model


def test_constants_are_spread_and_nothing_else_moves() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    enliven(model, torch.randn(2, 3, 9, 9))
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    constant = {"1.weight", "1.bias", "table", "frozen"}
    assert moved == constant | {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert all(after[name].unique().numel() == after[name].numel() for name in constant)
    assert after["frozen"].mean().item() == pytest.approx(1, abs=0.02)
    assert after["frozen"].std().item() == pytest.approx(SPREAD, rel=0.1)


def test_norms_have_the_statistics_of_the_images_and_their_own_momentum() -> None:
    model = net()
    images = torch.randn(2, 3, 9, 9)
    enliven(model, images)
    assert all(module.training for module in model.modules())
    assert model[1].momentum == 0.3
    x = model[0](images)
    torch.testing.assert_close(model[1].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, x.var((0, 2, 3)))
    with torch.no_grad():
        model[0].weight[0] = 0
    enliven(model, images)
    assert model[1].running_var[0] == pytest.approx(0.01 * x.var((0, 2, 3))[1:].sum().item() / 8, rel=1e-3)


def test_it_is_the_same_whenever_it_is_done() -> None:
    states = []
    for _ in range(2):
        model = net()
        torch.manual_seed(torch.initial_seed() + 1)
        enliven(model, inputs.noise((9, 9), 2))
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


class Breakable:
    """Eager operations, of which one call can be made to return what it does without `part` of its arguments."""

    def __init__(self) -> None:
        self.calls = 0
        self.broken: int | None = None
        self.ops = dataclasses.replace(EAGER, **{name: self._wrap(name) for name in OPERATIONS})

    def _wrap(self, name: str) -> Callable[..., Tensor]:
        operation = getattr(EAGER, name)

        def call(*given: Tensor, **named: object) -> Tensor:
            self.calls += 1
            if self.calls - 1 != self.broken:
                return operation(*given, **named)
            if name == "relative_attention":  # forgets its table
                return operation(*given[:3], torch.zeros_like(given[3]), *given[4:], **named)
            if name == "gated_attention":  # forgets its gate
                return operation(*given[:4], torch.zeros_like(given[4]), **named)
            if name == "depthwise_conv2d" and len(given) > 2:  # forgets its bias
                return operation(*given[:2], None, *given[3:], **named)
            return 1.1 * operation(*given, **named)  # is off by a tenth

        return call


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("vit_small_r26_s32_224", 64),
        ("cmt_ti", 64),
        ("tnt_s_patch16_224", 32),
        ("convit_tiny", 48),
        ("coatnet_0", 64),
        ("tutorial_coatnet_0", 64),
        ("tutorial_vit", 64),
        ("efficient_vit_b0", 224),
        ("detr_resnet50", 64),
        ("yolos_ti", 64),
    ],
)
@torch.inference_mode()
def test_an_operation_that_is_wrong_anywhere_is_seen(name: str, side: int) -> None:
    case = Case(name, "eager", "infer", "fp32", "nchw", (side, side), 2, "cpu")
    workload, breakable = Workload(), Breakable()
    model = MODELS[name].build(breakable.ops, (side, side), MODELS[name].num_classes).eval()
    model.load_state_dict(workload.state(name, (side, side)))
    image = workload.input(case, torch.float32)
    want = Outcome(model(image), {})
    calls = breakable.calls
    assert calls > 0
    for broken in sorted({round(calls * share / 6) for share in range(6)} | {calls - 1}):
        breakable.calls, breakable.broken = 0, broken
        error = relative_error(Outcome(model(image), {}), want)
        assert error > judge.FLOOR, f"call {broken} of {calls}"


@pytest.mark.parametrize(
    ("name", "side"),
    [("convmixer_1024_20_ks9_p14", 56), ("efficientnet_b0", 64), ("resnet18", 64), ("vit_small_r26_s32_224", 64)],
)
@torch.inference_mode()
def test_a_bias_or_a_scale_that_is_left_out_anywhere_is_seen(name: str, side: int) -> None:
    case = Case(name, "eager", "infer", "fp32", "nchw", (side, side), 2, "cpu")
    workload = Workload()
    model = workload.module(case, "eager", torch.float32)
    image = workload.input(case, torch.float32)
    want = Outcome(model(image), {})
    # The bias of a key shifts all logits of a softmax alike, so a packed one is no example.
    vectors = [(key, p) for key, p in model.named_parameters() if p.ndim == 1 and "qkv" not in key]
    for key, parameter in vectors[:: len(vectors) // 8]:
        kept = parameter.clone()
        parameter.copy_(torch.full_like(kept, round(kept.mean().item())))  # what initialisation left there
        assert relative_error(Outcome(model(image), {}), want) > 10 * judge.FLOOR, key
        parameter.copy_(kept)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cmt_ti"])
def test_weights_saved_at_any_size_load_at_another_where_it_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.safetensors"
    saved = create_model(name, resolution=(96, 160))
    save_file(saved.state_dict(), path)
    with pytest.raises(InputError, match="name that: --weights-resolution HEIGHTxWIDTH"):
        create_model(name, resolution=(64, 128), weights=path)
    with pytest.raises(InputError, match="does not fit"):
        create_model(name, resolution=(64, 128), weights=path, weights_resolution=(160, 128))
    loaded = create_model(name, resolution=(64, 128), weights=path, weights_resolution=(96, 160)).state_dict()
    if name == "cmt_ti":
        same = [key for key in loaded if "relative_pos" not in key]
    else:
        same = [key for key in loaded if key != "pos_embed"]
        table = saved.state_dict()["pos_embed"][:, 1:]
        torch.testing.assert_close(loaded["pos_embed"][:, 1:], resample_grid(table, (6, 10), (4, 8)))
    assert len(same) < len(loaded)
    assert all(torch.equal(loaded[key], saved.state_dict()[key]) for key in same)
    back = create_model(name, resolution=(96, 160), weights=path, weights_resolution=(96, 160)).state_dict()
    assert all(torch.equal(back[key], tensor) for key, tensor in saved.state_dict().items())


def test_a_size_is_refused_where_nothing_depends_on_it(tmp_path: Path) -> None:
    path = tmp_path / "saved.safetensors"
    save_file(create_model("resnet18").state_dict(), path)
    with pytest.raises(InputError, match="nothing in resnet18 depends on the resolution"):
        create_model("resnet18", weights=path, weights_resolution=(64, 96))
