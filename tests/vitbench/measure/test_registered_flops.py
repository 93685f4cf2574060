"""Every operator of vitkernels counts the same under fvcore and under FlopCounterMode, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fvcore.nn.jit_analysis import JitModelAnalysis
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
from vitbench.measure.registered_flops import registered_macs

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

    def forward(self, first: Tensor) -> Any:
        results = self.op(first, *self.arguments[1:])
        return tuple(results) if isinstance(results, (tuple, list)) else results


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
    handle = registered_macs()[f"vitkernels::{name}"]
    with torch.no_grad(), torch.device("meta"):
        analysis = JitModelAnalysis(Calls(op, arguments), (arguments[0],)).set_op_handle(f"vitkernels::{name}", handle)
        analysis.unsupported_ops_warnings(False).tracer_warnings("none")
        assert sum(analysis.by_operator().values()) * 2 == flops
        assert f"vitkernels::{name}" not in analysis.unsupported_ops()


class Depthwise(nn.Conv2d):
    def forward(self, image: Tensor) -> Tensor:
        return depthwise_conv2d(image, self.weight, self.bias, activation="gelu")


def test_a_fused_layer_counts_in_a_model_as_its_eager_one() -> None:
    fused, eager = (
        count(nn.Sequential(layer(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 8, 1)), (8, 8), in_chans=4)
        for layer in (Depthwise, nn.Conv2d)
    )
    assert fused == eager
    assert fused.gmacs == 64 * (4 * 9 + 4 * 8) / 1e9
