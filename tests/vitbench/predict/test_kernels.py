"""What a model runs, against numbers worked out by hand, our own counters and the memory command."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vitbench.bench import predict
from vitbench.memory.predict import ask as memory_of
from vitbench.memory.setting import MIB, workspace_bytes
from vitbench.memory.setting import Setting as MemorySetting
from vitbench.predict import find, operators
from vitbench.predict.kernels import kernels
from vitbench.predict.setting import Setting
from vitbench.predict.table import Kernel, Table, compact, macs_of, read, write
from vitbench.predict.traced import known


def kinds_of(model: nn.Module, layout: str = "nchw", autocast: torch.dtype | None = None) -> Counter[Kernel]:
    return kernels(operators.trace(model, (32, 32), layout, autocast).calls)


def only(found: Counter[Kernel], kind: str) -> Kernel:
    (kernel,) = (kernel for kernel in found if kernel.kind == kind)
    return kernel


def test_a_convolution_moves_its_maps_and_is_copied_to_channels_last() -> None:
    kernel = only(kinds_of(nn.Conv2d(3, 16, 3, padding=1)), "first convolution")
    assert kernel.moved == 4 * 32 * 32 * (3 + 16)
    assert kernel.fixed == 4 * 16 * 27
    assert kernel.macs == 32 * 32 * 16 * 27
    assert (kernel.depth, kernel.width) == (27, 16)
    assert kernel.beside == kernel.moved + 2 * 4 * 32 * 32 * 16, "the copies, and the bias that is added"
    last = only(kinds_of(nn.Conv2d(3, 16, 3, padding=1, bias=False), "nhwc"), "first convolution")
    assert last.beside == 0


def test_groups_and_depths() -> None:
    stack = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 1, groups=4))
    found = kinds_of(stack)
    assert only(found, "depthwise convolution").macs == 30 * 30 * 16 * 9
    grouped = only(found, "grouped convolution")
    assert (grouped.depth, grouped.width, grouped.macs) == (4, 8, 30 * 30 * 32 * 4)
    assert "depthwise channels-last" in {kernel.kind for kernel in kinds_of(stack, "nhwc")}


class Tokens(nn.Module):
    """A linear layer, a norm and attention over 16 tokens of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 64)
        self.norm = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.linear(x.reshape(x.shape[0], 16, 192)))
        q = tokens.reshape(x.shape[0], 16, 2, 32).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(q, q, q)


def test_autocast_is_that_of_cuda() -> None:
    """Weights and images are cast, the norm runs in fp32, attention takes its result in half."""
    found = kinds_of(Tokens(), autocast=torch.float16)
    product = only(found, "product")
    assert product.moved == 2 * 16 * (192 + 64)
    assert product.fixed == 2 * (192 * 64 + 64)
    assert (product.macs, product.depth, product.width) == (16 * 192 * 64, 192, 64)
    norm = only(found, "normalisation")
    assert norm.moved == 4 * 16 * (64 + 64 + 2), "in, out, mean and deviation"
    attention = only(found, "attention")
    assert attention.macs == 2 * 16 * 16 * 64
    assert attention.moved == pytest.approx(2 * 4 * 16 * 64 + 4 * 2 * 16)
    images = [kernel for kernel in found if kernel.kind == "copy" and kernel.moved == 6 * 3 * 32 * 32]
    assert images, "the images are cast to half"


MODELS = ("resnet18", "cmt_ti", "timm:convnext_atto", "timm:levit_128s")


@pytest.mark.parametrize("model", MODELS)
def test_macs_and_parameters_are_ours(model: str) -> None:
    answer = find.find(Setting(model, (224, 224)))
    assert not answer.reason
    ours = predict.count(model, (224, 224))
    assert answer.parameters == round(ours.params_m * 1e6)
    assert macs_of(answer.kernels) == pytest.approx(ours.gmacs * 1e9, rel=1e-3)


def test_memory_is_that_of_the_memory_command() -> None:
    answer = find.find(Setting("cmt_ti", (160, 160)))
    setting = MemorySetting("cmt_ti", (160, 160), "infer", "amp", "eager", optimizer="none")
    workspace = workspace_bytes(80, "infer")
    for batch, prediction in memory_of(setting, [1, 64], workspace).predictions.items():
        assert answer.peak_bytes(batch) == pytest.approx(MIB * prediction.peak - workspace, rel=0.01)


def test_the_classifier_may_be_another_or_none() -> None:
    counts = []
    for classes in (None, 10, 0):
        answer = find.find(Setting("timm:convnext_atto", (64, 64), num_classes=classes))
        counts.append(answer.parameters)
    assert counts == [counts[2] + 320 * 1000 + 1000, counts[2] + 320 * 10 + 10, counts[2]]


def test_models_that_look_at_their_device_while_they_are_made_are_traced() -> None:
    assert not find.find(Setting("timm:vit_tiny_r_s16_p8_224", (224, 224), fast_norm=True)).reason


def test_a_model_that_cannot_be_traced_is_an_answer_with_the_reason() -> None:
    answer = find.find(Setting("vit_tiny_patch16_224", (100, 100)))
    assert not answer.kernels
    assert answer.reason


def test_packing_keeps_products_and_bytes(tmp_path: Path) -> None:
    setting = Setting("timm:convnext_atto", (224, 224))
    answer = find.find(setting)
    one = known(setting, answer)
    path = tmp_path / "t.xz"
    write(path, [one, one._replace(layout="nhwc", reparam=True)])
    first, second = read(path)
    assert (second.layout, second.reparam) == ("nhwc", True)
    assert first.macs == pytest.approx(one.macs, rel=1e-9)
    assert first.parameters == one.parameters
    assert first.model == "convnext_atto"

    def moved(kernels: tuple[tuple[Kernel, int], ...]) -> float:
        table = Table.of([kernels])
        return float(table.sums(table.moved + table.fixed)[0])

    assert moved(first.kernels) == pytest.approx(moved(one.kernels), rel=1e-3)


def test_compacting_merges_what_is_alike_and_nothing_else() -> None:
    found = {
        Kernel("copy", 100.0): 3,
        Kernel("copy", 101.0): 1,
        Kernel("copy", 1000.0): 1,
        Kernel("product", 100.0, depth=8): 1,
        Kernel("product", 100.0, depth=16): 1,
    }
    merged = dict(compact(found))
    assert merged[Kernel("copy", 100.25)] == 4
    assert len(merged) == 4
