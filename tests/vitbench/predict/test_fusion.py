"""What torch.compile fuses: the bytes of each kernel, worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.predict import fusion, operators
from vitbench.predict.operators import Call, Operand, Step
from vitbench.predict.table import Kernel


class Residual(nn.Module):
    """Convolution, norm, activation, residual, and a convolution after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(x + F.relu(self.norm(self.first(x))))
        return out


class Gate(nn.Module):
    """Spreads the mean of each map over it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


class Dead(nn.Module):
    """Computes what nobody uses."""

    def forward(self, x: Tensor) -> Tensor:
        x.exp()
        return x.relu()


class Normed(nn.Module):
    """A sum that is normalised and used twice, once through a product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        out: Tensor = x + self.linear(self.norm(x))
        return out


def compiled(model: nn.Module, size: int = 8) -> dict[Kernel, int]:
    return dict(fusion.kernels(operators.trace(model, (size, size)).steps))


def of(kind: str, found: dict[Kernel, int]) -> list[Kernel]:
    return [one for one, count in found.items() if one.kind == kind for _ in range(count)]


MAP = 3 * 8 * 8 * 4  # bytes of an image


def test_what_lies_between_two_convolutions_is_one_pass() -> None:
    found = compiled(Residual())
    (between,) = of("elementwise", found)
    assert between.moved == 3 * MAP, "reads the image and the first convolution's result, writes their sum"
    assert between.fixed == 4 * 3 * 4, "weight, bias, mean and variance of the norm"
    convolutions = of("first convolution", found)
    assert len(convolutions) == 2
    assert all(one.beside == one.moved for one in convolutions), "copied from nchw; the bias is added by what follows"


def test_a_reduction_that_is_spread_over_its_input_reads_it_twice() -> None:
    found = compiled(Gate())
    (mean,), (product,) = of("reduction", found), of("elementwise", found)
    assert mean.moved == MAP + 3 * 4
    assert product.moved == 2 * MAP + 3 * 4


def test_what_nobody_reads_is_not_computed() -> None:
    (one,) = compiled(Dead())
    assert one == Kernel("elementwise", 2.0 * MAP)


def test_a_norm_takes_what_is_added_before_it_along() -> None:
    found = compiled(Normed())
    (norm,), (total,) = of("normalisation", found), of("elementwise", found)
    assert norm.moved == 3 * MAP, "reads the image, writes it plus one, and that normalised"
    assert total.moved == 3 * MAP


def convolution(outputs: int, inputs: int, width: int = 3, groups: int = 1) -> Step:
    def operand(*shape: int) -> Operand:
        return Operand(shape, (1,) * len(shape), 4, True)

    x = operand(operators.BATCH, inputs, 8, 8)
    weight, out = operand(outputs, inputs // groups, width, width), operand(operators.BATCH, outputs, 8, 8)
    numbers = ((1, 1), (1, 1), (1, 1), False, (0, 0), groups)
    return Step(Call("convolution", (x, weight), (out,), numbers, False), (), ())


@pytest.mark.parametrize(
    ("steps", "layout"),
    [
        ([], "nchw"),
        ([convolution(256, 256)], "nhwc"),
        ([convolution(64, 64, groups=64)], "nhwc"),
        ([convolution(256, 256, groups=4)], "nchw"),
        ([convolution(256, 256, groups=4), convolution(256, 256)], "nhwc"),
    ],
)
def test_convolutions_are_channels_last_where_inductor_expects_a_gain(steps: list[Step], layout: str) -> None:
    assert fusion.layout(steps) == layout


def test_one_convolution_among_very_many_operators_changes_no_layout() -> None:
    other = Step(Call("relu", (), (), (), True), (), ())
    assert fusion.layout([convolution(256, 256), *[other] * 300]) == "nchw"
