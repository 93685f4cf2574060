"""The bundle whose operations are vitkernels': fused Triton kernels on a GPU.

Attention without a bias has no kernel here, since torch's scaled_dot_product_attention is one: it runs that.
On the CPU vitkernels computes in plain PyTorch, or in Triton's interpreter under TRITON_INTERPRET=1: right, not fast.
"""

from __future__ import annotations

from typing import Any

import vitkernels
from torch import Tensor, nn
from vitkernels import layers
from vitkernels.layers import compute_dtype, packed_linear, reduced_block, reduced_block_serves

from vitbench.ops.blocks import eager_reduced_attention
from vitbench.ops.bundle import Ops, sdpa_attention


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v; as `ops.eager_attention` with a bias [H, N, M] or [1, H, N, M], or none.

    Raises: ValueError on another bias, or a head dim that the kernel does not take.
    """
    if bias is None:
        return sdpa_attention(q, k, v, None, scale)
    return vitkernels.bias_attention(q, k, v, bias[0] if bias.ndim == 4 and bias.shape[0] == 1 else bias, scale)


def relative_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int], scale: float | None = None
) -> Tensor:
    """As `ops.eager_relative_attention`; without gradients the expanded table is kept for the next call."""
    if layers.wants_grad(q, k, v, table):
        return vitkernels.relative_attention(q, k, v, table, grid, scale)
    dtype = compute_dtype(q)

    def expand(source: Tensor) -> Tensor:
        return vitkernels.expand_relative_bias(source, grid, dtype)

    expanded = layers.derived(table, "expanded", expand, table, key=(dtype, *grid))
    return vitkernels.relative_attention(q, k, v, table, grid, scale, expanded=expanded)


def reduced_attention(
    x: Tensor, grid: tuple[int, int], bias: Tensor, norm: nn.LayerNorm, attention: Any, drop_path: nn.Module
) -> Tensor:
    """As `blocks.eager_reduced_attention`; in evaluation, where the weights fit on chip, in two kernels."""
    reduction = tuple(attention.sr) if attention.reduction > 1 else None
    modules = (norm, attention.q, attention.k, attention.v, attention.proj, *(reduction or ()))
    if reduced_block_serves(x, bias, attention.heads, modules):
        return reduced_block(
            x, bias, grid, attention.heads, norm, attention.q, attention.k, attention.v, attention.proj, reduction
        )
    return eager_reduced_attention(x, grid, bias, norm, attention, drop_path)


FUSED = Ops(
    "fused",
    attention,
    relative_attention,
    vitkernels.gated_attention,
    vitkernels.depthwise_conv2d,
    conv_norm_act=layers.conv_norm_act,
    conv_act_norm=layers.conv_act_norm,
    conv_act_norm_conv=layers.conv_act_norm_conv,
    linears=packed_linear,
    reduced_attention=reduced_attention,
    derive=layers.derived,
)

_SDPA_IS_ONE = "its attention has no bias, for which torch's own fused kernel is the one to use (impl sdpa)"
#: Families that no kernel of vitkernels serves, and why.
UNSERVED = {
    "vit": _SDPA_IS_ONE,
    "deit": _SDPA_IS_ONE,
    "tnt": _SDPA_IS_ONE,
    "detr": _SDPA_IS_ONE,
    "yolos": _SDPA_IS_ONE,
    "tutorial": _SDPA_IS_ONE,
    "resnet": "it has dense convolutions only, which cuDNN computes",
}

__all__ = ["FUSED", "UNSERVED", "attention", "reduced_attention", "relative_attention"]
