"""Counts against arithmetic, against the catalog, and against what each counter alone gets wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from fvcore.nn import ActivationCountAnalysis
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitbench.catalog import catalog
from vitbench.measure import mac_rules
from vitbench.measure.flops import FlopCount, count
from vitbench.models import create_model


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_r50_s16_224", "resnet50", "cmt_s"])
def test_counts_are_the_catalogs(name: str) -> None:
    entry = catalog()[name]
    with torch.device("meta"):
        found = count(create_model(name), entry.resolution)
    assert found.gmacs == pytest.approx(entry.gmacs, rel=5e-3)
    assert round(found.params_m, 6) == entry.params_m
    assert found.uncounted_ops == ()


@pytest.mark.parametrize(("name", "macts"), [("resnet50", 11.11), ("vit_base_patch16_224", 23.90)])
def test_activations_are_those_that_timm_publishes(name: str, macts: float) -> None:
    with torch.device("meta"):
        assert count(create_model(name), (224, 224)).macts == pytest.approx(macts, abs=0.01)


def test_activations_equal_fvcores_own_count_of_a_real_run() -> None:
    model = create_model("cmt_ti", resolution=64).eval()
    analysis = ActivationCountAnalysis(model, torch.randn(1, 3, 64, 64))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert count(model, (64, 64)).macts == analysis.total() / 1e6


def test_fused_attention_counts_as_eager_does() -> None:
    assert count(create_model("vit_tiny_patch16_224", "sdpa"), (224, 224)) == count(
        create_model("vit_tiny_patch16_224"), (224, 224)
    )
    assert count(create_model("cmt_ti", "sdpa"), (160, 160)) == count(create_model("cmt_ti"), (160, 160))


def test_hollow_tensors_count_as_fake_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {name: create_model(name, resolution=64) for name in ("cmt_ti", "resnet18", "efficientnet_b0")}
    models["lstm"] = nn.Sequential(nn.Flatten(2), nn.LSTM(64 * 64, 8, batch_first=True))
    found = {name: count(model, (64, 64)) for name, model in models.items()}

    def refuse(*_: Any) -> None:
        raise RuntimeError("no hollow tensors")

    monkeypatch.setattr("vitbench.trace.hollow.new", refuse)
    assert {name: count(model, (64, 64)) for name, model in models.items()} == found


def test_a_model_that_reads_a_number_that_it_wrote_itself_is_counted() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 7)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(int(torch.tensor(3.0))):
                x = x + self.layer(x).sum()
            return x

    assert count(Reads(), (5, 10)).gmacs == 3 * 15 * 70 / 1e9


def test_it_is_fast_on_a_real_model() -> None:
    model = create_model("vit_base_patch16_224")
    count(create_model("resnet18"), (32, 32))
    start = time.process_time()
    count(model, (224, 224))
    assert time.process_time() - start < 2


@pytest.mark.smoke
def test_hand_computed_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),  # 8 x 8 -> 4 x 4: 8 * 16 * (2 * 9)
        nn.ConvTranspose2d(8, 3, 2, stride=2, bias=False),  # 4 x 4 -> 8 x 8: 16 * 8 * 3 * 4
        nn.Conv2d(3, 3, 4, padding="same"),  # 64 * 3 * 3 * 16
        nn.Flatten(2),
        nn.Conv1d(3, 5, 1),  # 64 * 15
        nn.Linear(64, 10, bias=False),  # 5 * 640
    )
    macs = 8 * 16 * 18 + 16 * 8 * 3 * 4 + 64 * 3 * 3 * 16 + 64 * 15 + 5 * 640
    acts = 8 * 16 + 3 * 64 + 3 * 64 + 5 * 64 + 5 * 10
    params = (8 * 18 + 8) + 96 + (3 * 3 * 16 + 3) + (15 + 5) + 640
    assert count(model, (8, 8), in_chans=4) == FlopCount(macs / 1e9, acts / 1e6, params / 1e6, ())


class Tokens(nn.Module):
    """Feeds a layer of [B, N, C] the image's rows."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1, 2))


def test_transformer_encoder_layer_is_not_lost_to_its_fast_path() -> None:
    layer = Tokens(nn.TransformerEncoderLayer(16, 2, dim_feedforward=32, batch_first=True)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, 3, 4, 16))
    assert counter.get_total_flops() == 0  # what the fast path hides
    n, c = 12, 16
    macs = n * c * 3 * c + 2 * n * n * c + n * c * c + 2 * n * c * 32
    assert count(layer, (4, 16)).gmacs == macs / 1e9


class Fourier(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(torch.fft.rfft2(x).real)


def test_an_operator_without_a_rule_is_named_and_free_ones_are_not() -> None:
    found = count(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Softmax(1), Fourier()), (8, 8))
    assert found.uncounted_ops == ("aten::fft_rfft2",)
    assert found.gmacs == 64 * 12 / 1e9


class Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ x.transpose(-2, -1)


class Hidden(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Opaque.apply(x)


def test_products_inside_an_autograd_function_are_seen() -> None:
    assert count(Hidden(), (8, 8)).gmacs == 3 * 8**3 / 1e9


@pytest.mark.parametrize("factor", [0, 3])
def test_where_counters_differ_the_larger_counts_and_the_operator_is_named(
    factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = mac_rules.RULES[torch.ops.aten.linear]
    monkeypatch.setitem(mac_rules.RULES, torch.ops.aten.linear, lambda given, out: factor * exact(given, out))
    found = count(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 30, 10)), (5, 6))
    assert found.gmacs == (12 * 30 + max(1, factor) * 1200) / 1e9
    assert found.differences == (
        f"of aten::linear its shapes give {factor * 1200:,} MACs, torch's formulas 1,200: the larger counts",
    )


def test_the_model_is_left_as_it_was() -> None:
    model = create_model("resnet18").train()
    model.register_buffer("table", torch.ones(3), persistent=False)
    model.plain = torch.ones(2)
    before = {name: (id(t), t._version) for name, t in model.state_dict(keep_vars=True).items()}
    count(model, (64, 64))
    assert model.training
    assert {name: (id(t), t._version) for name, t in model.state_dict(keep_vars=True).items()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.plain.device.type == "cpu"


def test_a_compiled_model_is_counted_as_its_eager_one() -> None:
    model = create_model("resnet18")
    assert count(torch.compile(model), (64, 64)) == count(model, (64, 64))
