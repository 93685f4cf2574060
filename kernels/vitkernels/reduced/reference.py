"""CMT's attention sub-block in plain PyTorch: its parameters, the reference and the work it cannot avoid."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkernels.attention.bias import bias_attention_reference
from vitkernels.depthwise.conv import depthwise_conv2d_reference


class ReducedAttentionWeights(NamedTuple):
    """Parameters and running statistics of one sub-block; linear weights are [out, in] as in torch.nn.Linear."""

    norm_weight: Tensor  # [C], norm1
    norm_bias: Tensor  # [C]
    q_weight: Tensor  # [C, C], attn.q
    q_bias: Tensor | None  # [C]
    k_weight: Tensor  # [C, C], attn.k
    k_bias: Tensor | None
    v_weight: Tensor  # [C, C], attn.v
    v_bias: Tensor | None
    proj_weight: Tensor  # [C, C], attn.proj
    proj_bias: Tensor | None
    reduce_weight: Tensor | None = None  # [C, 1, r, r], attn.sr.0; None at reduction 1, as are the rest
    reduce_bias: Tensor | None = None  # [C]
    bn_weight: Tensor | None = None  # [C], attn.sr.1
    bn_bias: Tensor | None = None
    bn_mean: Tensor | None = None  # [C], running statistics, updated in place in training
    bn_var: Tensor | None = None


def reduced_attention_reference(
    x: Tensor,
    bias: Tensor,
    weights: ReducedAttentionWeights,
    grid: tuple[int, int],
    heads: int,
    *,
    training: bool = False,
    momentum: float = 0.1,
    norm_eps: float = 1e-6,
    bn_eps: float = 1e-5,
    scale: float | None = None,
) -> Tensor:
    """`reduced_attention` in plain PyTorch, computed in fp32 (fp64 for fp64 input); same arguments and result."""
    acc = torch.promote_types(x.dtype, torch.float32)
    wide = x.to(acc)
    w = ReducedAttentionWeights(*(None if t is None else t.to(acc) for t in weights))  # type: ignore[arg-type]
    normed = F.layer_norm(wide, (x.shape[2],), w.norm_weight, w.norm_bias, norm_eps)
    reduced = normed
    if w.reduce_weight is not None:
        image = normed.transpose(1, 2).unflatten(2, grid)
        image = depthwise_conv2d_reference(image, w.reduce_weight, w.reduce_bias, w.reduce_weight.shape[-1], 0)
        means, spreads = w.bn_mean, w.bn_var
        if training and weights.bn_mean is not None and weights.bn_var is not None:
            means, spreads = weights.bn_mean, weights.bn_var
        image = F.batch_norm(image, means, spreads, w.bn_weight, w.bn_bias, training, momentum, bn_eps)
        reduced = image.flatten(2).transpose(1, 2)

    def split(t: Tensor) -> Tensor:
        return t.unflatten(2, (heads, -1)).transpose(1, 2)

    q = split(F.linear(normed, w.q_weight, w.q_bias))
    k, v = split(F.linear(reduced, w.k_weight, w.k_bias)), split(F.linear(reduced, w.v_weight, w.v_bias))
    mixed = bias_attention_reference(q, k, v, bias.to(acc), scale).transpose(1, 2).flatten(2)
    return (wide + F.linear(mixed, w.proj_weight, w.proj_bias)).to(x.dtype)


def reduced_attention_work(
    batch: int, tokens: int, keys: int, channels: int, *, itemsize: int = 2, bias_itemsize: int = 4, heads: int = 1,
    backward: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """FLOPs (2 per multiply-add, matrix products and reduction) and bytes of one pass that cannot be avoided.

    Bytes: x read and y written once, and the bias once; weights and the reduced map are small and left out. Reading x
    a second time for the keys is this design's own. The backward pass has two products for each of a projection and
    of the reduction, five for the two of the attention; it reads x, the output's gradient and the bias and writes the
    gradients of x and bias.
    """
    rows = batch * tokens
    projections = 2 * rows * channels * channels + 2 * batch * keys * channels * channels
    attention = 2 * rows * keys * channels
    reduction = rows * channels if keys < tokens else 0
    table = heads * tokens * keys * bias_itemsize
    if backward:
        return 4 * (projections + reduction) + 5 * attention, 3 * rows * channels * itemsize + 2 * table
    return 2 * (projections + attention + reduction), 2 * rows * channels * itemsize + table
