"""Predicted against measured memory, and both against arithmetic."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.measure import allocations, memory, workspace
from vitbench.measure.memory import MIB, MemoryMeasurement, measure, measure_cuda, predict
from vitbench.measure.step import make_step
from vitbench.models import create_model

F32, BF16 = torch.float32, torch.bfloat16


def both(
    name: str, mode: Any, batch: int, impl: str, dtype: torch.dtype, nhwc: bool = False, amp: torch.dtype | None = None
) -> tuple[memory.MemoryEstimate, MemoryMeasurement]:
    predicted = predict(lambda: create_model(name, impl, 64), (64, 64), batch, mode, dtype, nhwc, amp)
    layout = torch.channels_last if nhwc else torch.contiguous_format
    model = create_model(name, impl, 64).to(dtype=dtype, memory_format=layout)
    step = make_step(model, torch.randn(batch, 3, 64, 64).to(dtype=dtype, memory_format=layout), mode, amp)
    step()
    return predicted, measure(step)


CASES = [
    ("resnet18", "infer", 4, "eager", F32, False),
    ("resnet18", "train", 9, "eager", F32, False),
    ("resnet18", "train", 2, "eager", F32, True),
    ("resnet18", "train", 3, "eager", BF16, False),
    ("vit_tiny_patch16_224", "train", 4, "eager", F32, False),
    ("vit_tiny_patch16_224", "infer", 9, "sdpa", F32, False),
    ("vit_tiny_patch16_224", "infer", 1, "eager", BF16, False),
    ("vit_tiny_patch16_224", "train", 3, "sdpa", BF16, False),
    ("cmt_ti", "infer", 4, "eager", F32, False),
    ("cmt_ti", "infer", 1, "sdpa", F32, True),
    pytest.param("cmt_ti", "train", 6, "sdpa", F32, False, marks=pytest.mark.smoke),
    ("cmt_ti", "train", 2, "eager", BF16, False),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operators on a busy machine spend their time waiting for the other thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "mode", "batch", "impl", "dtype", "nhwc"), CASES)
def test_prediction_and_measurement_agree_within_one_percent(
    name: str, mode: str, batch: int, impl: str, dtype: torch.dtype, nhwc: bool
) -> None:
    predicted, measured = both(name, mode, batch, impl, dtype, nhwc)
    assert predicted.static_mib == measured.static_mib
    assert predicted.peak_mib == pytest.approx(measured.peak_mib, rel=0.01)
    assert measured.peak_mib > measured.static_mib
    assert measured.reserved_mib is None


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_mixed_precision_agrees(mode: str) -> None:
    predicted, measured = both("resnet18", mode, 2, "eager", F32, amp=BF16)
    assert predicted.peak_mib == pytest.approx(measured.peak_mib, rel=0.01)


class Dense(nn.Module):
    """No operator of it has temporaries, so its memory can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 100, 1000, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_inference_of_one_layer_is_arithmetic(dtype: torch.dtype) -> None:
    found = predict(Dense, (10, 10), 7, "infer", dtype)
    assert found.static_mib * MIB == dtype.itemsize * (7 * 300 + 300_000)
    needed = dtype.itemsize * (7 * 300 + 300_000 + 7 * 1000)
    if dtype is F32:
        assert found.peak_mib * MIB == needed
        return
    step = make_step(Dense().to(dtype), torch.randn(7, 3, 10, 10).to(dtype), "infer")
    step()
    assert found.peak_mib == measure(step).peak_mib >= needed / MIB  # oneDNN may pack the matrices


def test_training_of_one_layer_is_arithmetic() -> None:
    found = predict(Dense, (10, 10), 7, "train", F32)
    weight, logits, x = 4 * 300_000, 4 * 7 * 1000, 4 * 7 * 300
    targets, step_count, loss = 8 * 7, 4, 4
    static = 3 * weight + x + targets + step_count  # the weight and AdamW's two moments
    assert found.static_mib * MIB == static
    # While the weight's gradient is made: the logits' gradient, what log_softmax saved, its total weight and the loss.
    at_gradient = static + weight + logits + loss
    assert at_gradient <= found.peak_mib * MIB <= at_gradient + 2 * logits + 64


def test_frozen_weights_have_no_gradient_and_no_state() -> None:
    def frozen() -> nn.Module:
        return nn.Sequential(Dense().requires_grad_(False), nn.Linear(1000, 10))

    size = 4 * (300_000 + 300 + 3 * 10_010 + 2) + 8
    assert predict(frozen, (10, 10), 1, "train", F32).static_mib * MIB == size


def test_weights_that_no_gradient_reaches_have_no_state() -> None:
    def idle() -> nn.Module:
        model = Dense()
        model.register_parameter("unused", nn.Parameter(torch.empty(1000, 1000)))
        return model

    found = predict(idle, (10, 10), 2, "train", F32)
    step = make_step(idle(), torch.randn(2, 3, 10, 10), "train")
    step()
    assert found.static_mib == measure(step).static_mib


class Resized(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.interpolate(x * 2, scale_factor=3, mode=self.mode).flatten(1)[:, :5])


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("way", ["infer", "train"])
def test_a_resize_is_predicted_with_what_its_kernel_copies(mode: str, way: Any) -> None:
    found = predict(lambda: Resized(mode), (40, 24), 5, way, F32)
    image = 4 * 5 * 3 * 40 * 24
    if way == "infer":
        assert found.static_mib * MIB == image + 4 * 12
        assert found.peak_mib * MIB >= image + image + 9 * image
    step = make_step(Resized(mode), torch.randn(5, 3, 40, 24), way)
    step()
    assert found.peak_mib == pytest.approx(measure(step).peak_mib, rel=0.01)


class Encoder(nn.Module):
    """Torch runs such a layer as one operator in inference, and a recurrent one as another."""

    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.layer: nn.Module = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True)
        if recurrent:
            self.layer = nn.LSTM(48, 64, num_layers=2, batch_first=True)
        self.fc = nn.Linear(64 if recurrent else 48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x.flatten(2).transpose(1, 2).repeat(1, 1, 16))
        return self.fc((x[0] if isinstance(x, tuple) else x).mean(1))


class Places(nn.Module):
    """Embeds places as Gemma's vision towers do; how many there are it says, so that no number need be read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(500, 30, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        here = torch.arange(x.shape[-1], device=x.device).clamp(min=0)
        return self.table(F.one_hot(here, num_classes=500).to(x.dtype)).sum() + x.flatten(1)[:, :10]


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_one_hot_needs_no_data(mode: Literal["infer", "train"]) -> None:
    step = make_step(Places(), torch.randn(2, 3, 10, 70), mode)
    step()
    assert predict(Places, (10, 70), 2, mode).peak_mib == pytest.approx(measure(step).peak_mib, rel=0.01)


class Mixing(nn.Module):
    """An einsum in fp32 with autocast off, or (mixed) of two dtypes under it, which has a rule for its product."""

    def __init__(self, mixed: bool) -> None:
        super().__init__()
        self.mixed = mixed
        self.values = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2)
        weights, values = (x @ x.transpose(1, 2)).softmax(-1), self.values(x)
        if self.mixed and torch.is_autocast_enabled("cpu"):
            return torch.einsum("bij,bjk->bik", weights, values).mean(1)
        with torch.autocast("cpu", enabled=False):
            product = torch.einsum("bij,bjk->bik", weights.float(), values.float())
        assert product.dtype is torch.float32
        return product.mean(1)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("autocast", [torch.bfloat16, None])
def test_products_inside_an_einsum_are_under_autocast_where_it_is_on(autocast: torch.dtype | None, mixed: bool) -> None:
    step = make_step(Mixing(mixed), torch.randn(2, 3, 40, 10), "infer", autocast)
    step()
    found = predict(partial(Mixing, mixed), (40, 10), 2, "infer", autocast=autocast)
    assert found.peak_mib == pytest.approx(measure(step).peak_mib, rel=0.01)


def test_dropout_that_does_nothing_copies_nothing() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(300, 4))

    assert predict(build, (10, 10), 9, "infer").peak_mib * MIB == 4 * (9 * 300 + 4 * 301 + 9 * 4)


@pytest.mark.parametrize("batch", [3, 40])
def test_what_a_recurrent_layer_keeps_for_its_backward_pass_is_predicted(batch: int) -> None:
    """More than anything that torch says of its operator; of many images it is worked out from few."""
    found = predict(lambda: Encoder(recurrent=True), (16, 16), batch, "train")
    step = make_step(Encoder(recurrent=True), torch.randn(batch, 3, 16, 16), "train")
    step()
    assert found.peak_mib == pytest.approx(measure(step).peak_mib, rel=0.01)


@pytest.mark.parametrize("recurrent", [False, True])
def test_layers_that_torch_runs_whole_are_predicted(recurrent: bool) -> None:
    found = predict(lambda: Encoder(recurrent), (16, 16), 3, "infer", F32)
    step = make_step(Encoder(recurrent), torch.randn(3, 3, 16, 16), "infer")
    step()
    assert found.peak_mib == pytest.approx(measure(step).peak_mib, rel=0.01)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(300, 300, bias=False) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)))


def test_tied_weights_count_once() -> None:
    assert predict(Tied, (10, 10), 1, "infer", F32).static_mib * MIB == 4 * (300 * 300 + 300)


def test_what_fits_nowhere_is_predicted_without_computing() -> None:
    found = predict(lambda: create_model("vit_huge_patch14_224", "sdpa"), (224, 224), 4096, "infer", BF16)
    hidden = 2 * 4096 * 257 * 5120 / MIB  # the feed-forward's activation, alive twice: before and after GELU
    assert found.peak_mib > found.static_mib + 2 * hidden


def test_the_cpu_allocator_shows_temporaries_that_are_gone_at_the_end() -> None:
    def call() -> Tensor:
        first = torch.empty(MIB, dtype=torch.uint8)
        second = torch.empty(2 * MIB, dtype=torch.uint8)
        del first
        return torch.empty(MIB // 2, dtype=torch.uint8) if second.numel() else second

    assert allocations.rise_of(call) == 3 * MIB


def test_workspace_inside_a_convolution_is_seen_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[workspace.Kernel] = []
    make = workspace.Kernel.of

    def spy(op: Any, args: tuple[Any, ...], out: Any) -> workspace.Kernel | None:
        call = make(op, args, out)
        if call is not None:
            calls.append(call)
        return call

    monkeypatch.setattr(memory.Kernel, "of", spy)
    for dtype in (F32, BF16):
        predict(lambda: create_model("cmt_ti", resolution=64), (64, 64), 2, "train", dtype)
    distinct = {(call.op, call.args): call for call in calls}
    assert len(distinct) > 50
    some = list(itertools.islice(distinct.values(), 0, None, 5))
    assert all(call.rise() <= call.rise_bound() for call in some)
    forward = [call for call in some if call.op is torch.ops.aten.convolution.default]
    assert any(call.rise() > call.args[0].dtype.itemsize * call.elements for call in forward)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "groups"), [(16, 16, 7, 1), (64, 8, 3, 1), (8, 8, 9, 8), (3, 8, 11, 1)]
)
def test_an_unfolded_input_is_within_the_bound(
    channels: int, filters: int, kernel: int, groups: int, dtype: torch.dtype
) -> None:
    """Large filters over many channels that give few: what a processor without AVX-512 unfolds is far beyond both."""
    x, y = torch.empty(2, channels, 24, 24, dtype=dtype), torch.empty(2, filters, 24, 24, dtype=dtype)
    weight = torch.empty(filters, channels // groups, kernel, kernel, dtype=dtype)
    rest = ([1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], groups)
    for op, args, out in (
        (torch.ops.aten.convolution.default, (x, weight, None, *rest), y),
        (torch.ops.aten.convolution_backward.default, (y, x, weight, [0], *rest, [True] * 3), (x, weight, y)),
    ):
        call = workspace.Kernel.of(op, args, out)
        assert call is not None
        assert call.rise() <= call.rise_bound()


def test_cuda_measurement_is_the_rise_over_the_steps_own_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    others = 100 * MIB
    order: list[str] = []
    step = make_step(Dense(), torch.empty(1, 3, 10, 10), "infer")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: order.append("empty"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: order.append("reset"))
    static = 1_200_128 + 1536
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: order.append("allocated") or static + others)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: static + others + 4096)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: static + others + 2 * MIB)
    found = measure_cuda(step)
    assert order == ["empty", "reset", "allocated"]
    assert found == MemoryMeasurement(static / MIB, (static + 4096) / MIB, (static + 2 * MIB) / MIB)


def test_a_step_frees_its_gradients_and_returns_what_it_says() -> None:
    model = Dense()
    step = make_step(model, torch.randn(2, 3, 10, 10), "train")
    before = model.fc.weight.detach().clone()
    loss = step()
    assert loss.shape == ()
    assert not loss.requires_grad
    assert model.fc.weight.grad is None
    assert not torch.equal(model.fc.weight, before)
    assert make_step(model, torch.randn(2, 3, 10, 10), "infer")().shape == (2, 1000)
    assert not model.training


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match='"infer" or "train", not \'test\''):
        make_step(Dense(), torch.empty(1, 3, 10, 10), "test")
