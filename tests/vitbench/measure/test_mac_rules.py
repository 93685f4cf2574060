"""Every operator of vitkernels counts by the formula it registers, and torch's own by rules that torch agrees with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from vitkernels import (
    bias_attention_work,
    depthwise_conv2d,
    depthwise_conv2d_work,
    gated_attention_work,
    reduced_attention_work,
    relative_attention_work,
)

from vitbench.measure.flops import count
from vitbench.measure.mac_rules import multiplies

pytestmark = pytest.mark.fast

B, H, N, D, GRID, C = 2, 2, 15, 16, (3, 5), 32
OPS = torch.ops.vitkernels


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


q = k = v = out = grad = meta(B, H, N, D)
lse, bias, gate, padded = meta(B, H, N), meta(H, N, N), meta(H), meta(H, N, 16)
table = meta(5 * 9, H)
x, weight, vector = meta(B, C, 8, 8), meta(C, 1, 3, 3), meta(C)
conv = (1, 1, "gelu", "none", False)
square = meta(C, C)
sizes = (4, H, 1e-6, 0.25)  # of the whole block: grid width, heads, eps, scale
#: operator: (arguments, FLOPs by the operation's own arithmetic)
CALLS: dict[str, tuple[tuple[Any, ...], int]] = {
    "bias_attention_fwd": ((q, k, v, bias, 0.25, True), bias_attention_work(B, H, N, N, D)[0]),
    "bias_attention_bwd": (
        (grad, q, k, v, bias, out, lse, 0.25, True),
        bias_attention_work(B, H, N, N, D, backward=True)[0],
    ),
    "expand_relative_bias": ((table, *GRID, torch.float32), 0),
    "relative_attention_fwd": ((q, k, v, padded, 0.25, True), relative_attention_work(B, H, GRID, D)[0]),
    "relative_attention_bwd": (
        (grad, q, k, v, table, padded, out, lse, 0.25, *GRID, True),
        relative_attention_work(B, H, GRID, D, backward=True)[0],
    ),
    "gated_attention_fwd": ((q, k, v, bias, gate, 0.25, True), gated_attention_work(B, H, N, D)[0]),
    "gated_attention_bwd": (
        (grad, q, k, v, bias, gate, out, lse, padded, 0.25),
        gated_attention_work(B, H, N, D, backward=True)[0],
    ),
    "depthwise_conv2d": ((x, weight, vector, vector, vector, *conv), depthwise_conv2d_work((B, C, 8, 8), 3)[0]),
    "depthwise_conv2d_backward": (
        (x, None, x, weight, vector, vector, vector, *conv, [True] * 5),
        depthwise_conv2d_work((B, C, 8, 8), 3, backward=True)[0],
    ),
    "reduced_attention_block": (
        (
            meta(B, 24, C),
            meta(H, 24, 6),
            vector,
            vector,
            *(square, vector) * 4,
            meta(C, 1, 2, 2),
            vector,
            vector,
            *sizes,
        ),
        reduced_attention_work(B, 24, 6, C)[0],
    ),
}


class Calls(nn.Module):
    def __init__(self, op: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.op, self.arguments = op, arguments

    def forward(self, image: Tensor) -> Any:
        return self.op(*self.arguments)


def test_no_operator_is_left_out() -> None:
    assert set(CALLS) == {str(op).partition(".")[2] for op in flop_registry if str(op).startswith("vitkernels.")}
    compiled_in = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "vitkernels::" in name}
    assert set(CALLS) == {name.partition(".")[0] for name in compiled_in}


@pytest.mark.parametrize("name", list(CALLS))
def test_both_counters_count_it(name: str) -> None:
    arguments, flops = CALLS[name]
    op = getattr(OPS, name)
    with FlopCounterMode(display=False) as counter:
        op(*arguments)
    assert counter.get_total_flops() == flops
    found = count(Calls(op, arguments), (8, 8))
    assert found.gmacs * 2e9 == pytest.approx(flops, abs=0.5)
    assert found.uncounted_ops == found.differences == ()


class Depthwise(nn.Conv2d):
    def forward(self, image: Tensor) -> Tensor:
        return depthwise_conv2d(image, self.weight, self.bias, activation="gelu")


def test_a_fused_layer_counts_in_a_model_as_its_eager_one() -> None:
    fused, eager = (
        count(nn.Sequential(layer(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 8, 1)), (8, 8), in_chans=4)
        for layer in (Depthwise, nn.Conv2d)
    )
    assert (fused.kernel_gmacs, eager.kernel_gmacs) == (64 * 4 * 9 / 1e9, 0)
    assert replace(fused, kernel_gmacs=0) == eager
    assert fused.gmacs == 64 * (4 * 9 + 4 * 8) / 1e9


X = torch.empty(2, 6, 10, device="meta")
ATEN: list[tuple[str, Callable[[], Any], int]] = [
    ("aten::matmul", lambda: meta(3, 1, 4, 5) @ meta(2, 5, 7), 3 * 2 * 4 * 5 * 7),
    ("aten::matmul", lambda: meta(4, 5) @ meta(5), 20),
    ("aten::matmul", lambda: meta(5) @ meta(3, 5, 2), 3 * 5 * 2),
    ("aten::dot", lambda: meta(9).dot(meta(9)), 9),
    ("aten::linear", lambda: F.linear(X, meta(10)), 2 * 6 * 10),
    ("aten::addmm", lambda: torch.addmm(meta(4), meta(3, 5), meta(5, 4)), 3 * 5 * 4),
    ("aten::baddbmm", lambda: torch.baddbmm(meta(1), meta(2, 3, 5), meta(2, 5, 4)), 2 * 3 * 5 * 4),
    ("aten::tensordot", lambda: torch.tensordot(meta(3, 4, 5), meta(4, 5, 6), dims=2), 3 * 4 * 5 * 6),
    ("aten::conv1d", lambda: F.conv1d(X, meta(4, 3, 3), groups=2), 2 * 4 * 8 * 3 * 3),
    ("aten::conv1d", lambda: F.conv1d(meta(6, 10), meta(4, 6, 3)), 4 * 8 * 6 * 3),
    ("aten::conv2d", lambda: F.conv2d(meta(2, 6, 7, 9), meta(6, 1, 3, 2), padding="same", groups=6), 2 * 6 * 63 * 6),
    ("aten::conv3d", lambda: F.conv3d(meta(1, 4, 5, 6, 7), meta(8, 2, 2, 3, 3), groups=2), 8 * 4 * 4 * 5 * 2 * 18),
    ("aten::conv_transpose1d", lambda: F.conv_transpose1d(X, meta(6, 2, 4), stride=3, groups=3), 2 * 6 * 10 * 2 * 4),
    ("aten::conv_transpose2d", lambda: F.conv_transpose2d(meta(4, 5, 6), meta(4, 3, 2, 2)), 4 * 5 * 6 * 3 * 4),
    ("aten::conv_tbc", lambda: torch.conv_tbc(meta(9, 2, 4), meta(3, 4, 5), meta(5)), 7 * 2 * 5 * 3 * 4),
    ("aten::bilinear", lambda: F.bilinear(meta(2, 3, 4), meta(2, 3, 5), meta(6, 4, 5)), 6 * 6 * 4 * 5),
    ("aten::cdist", lambda: torch.cdist(meta(2, 30, 8), meta(2, 40, 8)), 2 * 30 * 40 * 8),
    ("aten::cdist", lambda: torch.cdist(meta(30, 8), meta(40, 8), p=1), 0),
]


class Function(nn.Module):
    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, image: Tensor) -> Any:
        return self.call()


@pytest.mark.parametrize(("op", "call", "macs"), ATEN)
def test_an_operator_of_torch_counts_exactly(op: str, call: Callable[[], Any], macs: int) -> None:
    found = count(Function(call), (8, 8))
    assert round(found.gmacs * 1e9) == macs
    assert found.uncounted_ops == found.differences == ()


class Sequences(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image.flatten(2).transpose(1, 2))[0]  # [1, 20, 3]


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.LSTM(3, 7, batch_first=True), 20 * 4 * 7 * (3 + 7)),
        (nn.LSTM(3, 7, 2, bidirectional=True), 20 * 2 * 4 * 7 * ((3 + 7) + (14 + 7))),
        (nn.LSTM(3, 7, batch_first=True, proj_size=2), 20 * (4 * 7 * (3 + 2) + 7 * 2)),
        (nn.GRU(3, 5, bidirectional=True, batch_first=True), 20 * 2 * 3 * 5 * (3 + 5)),
        (nn.RNN(3, 5, 3), 20 * 5 * ((3 + 5) + 2 * (5 + 5))),
    ],
)
def test_a_recurrent_layer_counts_every_matrix_in_every_step(layer: nn.Module, macs: int) -> None:
    found = count(Sequences(layer), (4, 5))
    assert round(found.gmacs * 1e9) == macs
    assert found.uncounted_ops == found.differences == ()


@pytest.mark.parametrize(
    ("op", "wanted"),
    [
        ("hardswish", False), ("repeat", False), ("im2col", False), ("cummax", False), ("upsample_trilinear3d", False),
        ("native_dropout", False), ("linalg_vector_norm", False), ("_convert_indices_from_coo_to_csr", False),
        ("mv", True), ("_fft_r2c", True), ("linalg_inv_ex", True), ("mkldnn_rnn_layer", True), ("_trilinear", True),
    ],
)  # fmt: skip
def test_which_operators_multiply(op: str, wanted: bool) -> None:
    packet = getattr(torch.ops.aten, op)
    assert multiplies(getattr(packet, packet.overloads()[0])) is wanted
