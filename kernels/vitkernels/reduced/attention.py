"""CMT's lightweight attention sub-block: x + proj(softmax(q k^T * scale + bias) v) with few keys.

q comes from LN(x); k and v from r, LN(x) reduced by one depthwise k x k stride k convolution and a batch norm (r is
LN(x) itself at reduction 1). The cost that cannot be avoided is x read and y written once, and x once more for the
keys, which must be known before the first row.

Inference in fp16 and bf16 with C <= 128, a multiple of 16, and M <= 64: two kernels (kernels.py), with nothing of
size [N, C] between them. Elsewhere PyTorch's layer norm and matrix products stand around `depthwise_conv2d` (reduction,
its bias and the evaluated batch norm in one kernel) and `bias_attention`. Training always takes this second form: there
the batch norm uses the statistics of its batch, whose sums come out of the reduction's own kernel
(`depthwise_conv2d_stats`); what is left of the norm is one multiply-add on the reduced map.

Source: CMT (2107.06263), section 3.2; parameter names of its released code in comments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkernels.attention.bias import bias_attention
from vitkernels.depthwise.conv import batch_norm_affine, depthwise_conv2d, depthwise_conv2d_stats
from vitkernels.reduced.operators import block_op, block_serves
from vitkernels.reduced.reference import ReducedAttentionWeights, reduced_attention_reference, reduced_attention_work
from vitkernels.runtime.autograd import needs_grad
from vitkernels.runtime.device import autocast_dtype

_PRODUCTS = ("q_weight", "k_weight", "v_weight", "proj_weight", "reduce_weight")


def reduced_attention(
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
    """x + proj(attention(q(LN x), k(r), v(r)) with bias), r = BN(depthwise r x r stride r of LN x).

    Chosen by shape and mode: without gradients, in fp16 or bf16 at C <= 128 (a multiple of 16) and M <= 64, two kernels
    do it all; otherwise library products stand around the fused convolution and attention. In training the batch norm
    uses the batch's statistics (their sums fused into the reduction) and updates the running ones. CPU tensors run
    plain PyTorch, except under TRITON_INTERPRET=1. Under autocast x and the weights of products are cast to its dtype.

    Args:
        x: [B, N, C] tokens by rows of the grid, N = h * w; fp16, bf16 or fp32 (on the CPU also fp64).
        bias: [heads, N, M], M = (h // r) * (w // r), any floating dtype.
        weights: parameters; q, k, v, proj and reduce weights in x's dtype, vectors in any floating dtype.
        grid: (h, w), divisible by the reduction r (read off weights.reduce_weight).
        heads: divides C.
        scale: of the scores, default (C / heads) ** -0.5.

    Returns: [B, N, C] in x's dtype.

    Raises: ValueError on shape, dtype or device mismatch, and in training on a single value per channel to normalise.
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
        cast = {n: t.to(dtype) for n, t in weights._asdict().items() if t is not None and n in _PRODUCTS}
        weights = weights._replace(**cast)
    _validate(x, bias, weights, grid, heads)
    scale = (x.shape[2] // heads) ** -0.5 if scale is None else float(scale)
    if not training and block_serves(x, x.dtype, heads, bias.shape[2]) and not needs_grad(x, bias, *weights):
        factor, offset = _evaluated_norm(weights, bn_eps)
        affine = (factor, _folded_shift(weights, factor, offset))
        w = weights
        linear = (w.q_weight, w.q_bias, w.k_weight, w.k_bias, w.v_weight, w.v_bias, w.proj_weight, w.proj_bias)
        return block_op(
            x, bias, w.norm_weight, w.norm_bias, *linear, w.reduce_weight, *affine, grid[1], heads, norm_eps, scale
        )
    return _composed(x, bias, weights, grid, heads, training, momentum, norm_eps, bn_eps, scale)


def _evaluated_norm(w: ReducedAttentionWeights, eps: float) -> tuple[Tensor | None, Tensor | None]:
    if w.bn_weight is None or w.bn_bias is None or w.bn_mean is None or w.bn_var is None:
        return None, None
    acc = torch.promote_types(w.bn_var.dtype, torch.float32)
    factor = w.bn_weight.to(acc) * (w.bn_var.to(acc) + eps).rsqrt()
    return factor, w.bn_bias.to(acc) - w.bn_mean.to(acc) * factor


def _folded_shift(w: ReducedAttentionWeights, factor: Tensor | None, shift: Tensor | None) -> Tensor | None:
    if factor is None or shift is None or w.reduce_bias is None:
        return shift
    return shift + w.reduce_bias.to(factor.dtype) * factor


def _composed(
    x: Tensor,
    bias: Tensor,
    w: ReducedAttentionWeights,
    grid: tuple[int, int],
    heads: int,
    training: bool,
    momentum: float,
    norm_eps: float,
    bn_eps: float,
    scale: float,
) -> Tensor:
    batch, tokens, channels = x.shape
    acc = torch.promote_types(x.dtype, torch.float32)
    normed = F.layer_norm(x.to(acc), (channels,), w.norm_weight.to(acc), w.norm_bias.to(acc), norm_eps).to(x.dtype)
    reduced = normed
    if w.reduce_weight is not None:
        r = w.reduce_weight.shape[-1]
        image = normed.transpose(1, 2).unflatten(2, grid)  # channels_last in memory
        if training:
            reduced = _train_norm(image, w, r, momentum, bn_eps)
        else:
            factor, shift = _evaluated_norm(w, bn_eps)
            reduced = depthwise_conv2d(image, w.reduce_weight, w.reduce_bias, r, 0, scale=factor, shift=shift)
        reduced = reduced.flatten(2).transpose(1, 2)

    def split(t: Tensor) -> Tensor:
        return t.unflatten(2, (heads, -1)).transpose(1, 2)

    q = split(_linear(normed, w.q_weight, w.q_bias))
    k, v = split(_linear(reduced, w.k_weight, w.k_bias)), split(_linear(reduced, w.v_weight, w.v_bias))
    mixed = bias_attention(q, k, v, bias, scale).transpose(1, 2).reshape(batch * tokens, channels)
    out = torch.addmm(
        x.reshape(batch * tokens, channels), mixed, w.proj_weight.t()
    )  # the residual rides on the product
    if w.proj_bias is not None:
        out = out + w.proj_bias.to(out.dtype)
    return out.view(batch, tokens, channels)


def _linear(t: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(t, weight, None if bias is None else bias.to(t.dtype))


def _train_norm(image: Tensor, w: ReducedAttentionWeights, r: int, momentum: float, eps: float) -> Tensor:
    """The reduced map normalised by its batch's statistics; running statistics updated in place."""
    assert w.reduce_weight is not None
    assert w.bn_weight is not None
    assert w.bn_bias is not None
    y, sums = depthwise_conv2d_stats(image, w.reduce_weight, w.reduce_bias, r, 0)
    count = y.numel() // y.shape[1]
    if count == 1:
        raise ValueError(
            f"reduced_attention: training needs more than 1 value per channel to normalise; got {list(y.shape)}"
        )
    factor, shift, mean, variance = batch_norm_affine(sums, max(count, 1), w.bn_weight, w.bn_bias, eps)
    if count and w.bn_mean is not None and w.bn_var is not None:
        with torch.no_grad():
            w.bn_mean.lerp_(mean.to(w.bn_mean.dtype), momentum)
            w.bn_var.lerp_((variance * (count / (count - 1))).to(w.bn_var.dtype), momentum)
    return (y.to(factor.dtype) * factor[:, None, None] + shift[:, None, None]).to(y.dtype)


def _validate(x: Tensor, bias: Tensor, w: ReducedAttentionWeights, grid: tuple[int, int], heads: int) -> None:
    def require(good: bool, what: str) -> None:
        if not good:
            raise ValueError(f"reduced_attention: {what}")

    require(x.dim() == 3, f"x {list(x.shape)} should be [B, N, C]")
    tokens, channels = x.shape[1:]
    require(len(grid) == 2, f"grid {tuple(grid)} should be (h, w)")
    require(heads >= 1, f"heads {heads} should be 1 or more and divide the C of x {list(x.shape)}")
    require(grid[0] * grid[1] == tokens, f"grid {tuple(grid)} should hold the N of x {list(x.shape)}")
    require(channels % heads == 0, f"heads {heads} should divide the C of x {list(x.shape)}")
    r = 1
    if w.reduce_weight is not None:
        taps = list(w.reduce_weight.shape)
        require(
            len(taps) == 4 and taps[-1] > 1, f"reduce_weight {taps} should be [C, 1, r, r] with r from 2, or None at 1"
        )
        r = taps[-1]
    require(
        w.reduce_weight is not None or w.reduce_bias is None,
        "reduce_bias needs a reduce_weight; at reduction 1 both are None",
    )
    require(grid[0] % r == 0 and grid[1] % r == 0, f"grid {tuple(grid)} should be divisible by the reduction {r}")
    keys = (grid[0] // r) * (grid[1] // r)
    require(
        tuple(bias.shape) == (heads, tokens, keys),
        f"bias {list(bias.shape)} should be [heads, N, M] = {[heads, tokens, keys]} for x {list(x.shape)}",
    )
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    require(x.dtype in floats, f"x is {x.dtype}, q_weight {w.q_weight.dtype}; x should be fp16, bf16 or fp32")
    norm = (w.bn_weight, w.bn_bias, w.bn_mean, w.bn_var)
    complete = all(t is not None for t in norm) if w.reduce_weight is not None else all(t is None for t in norm)
    require(complete, f"reduce_weight at reduction {r} needs bn_weight, bn_bias, bn_mean and bn_var, or none of them")
    for name, t in {**w._asdict(), "bias": bias}.items():
        if t is None:
            continue
        require(t.device == x.device, f"{name} is on {t.device}, x is on {x.device}")
        if name == "bias":
            continue
        shape = [channels, 1, r, r] if name == "reduce_weight" else [channels] * (1 + (name in _PRODUCTS))
        require(list(t.shape) == shape, f"{name} {list(t.shape)} should be {shape} for x {list(x.shape)}")
        require(name not in _PRODUCTS or t.dtype == x.dtype, f"{name} is {t.dtype}, x is {x.dtype}; should be equal")


@dataclass(frozen=True)
class ReducedAttentionCase:
    """One stage of a CMT: C channels on an h x h grid, keys reduced r x r."""

    name: str
    C: int
    h: int
    heads: int
    r: int
    B: int = 64


REDUCED_ATTENTION_CASES: tuple[ReducedAttentionCase, ...] = (
    *(ReducedAttentionCase(f"cmt_s-{s}-224", 64 << i, 56 >> i, 1 << i, 8 >> i) for i, s in enumerate("abcd")),
    *(ReducedAttentionCase(f"cmt_s-{s}-384", 64 << i, 96 >> i, 1 << i, 8 >> i) for i, s in enumerate("ab")),
    *(ReducedAttentionCase(f"cmt_ti-{s}-160", 46 << i, 40 >> i, 1 << i, 8 >> i) for i, s in enumerate("ab")),
    ReducedAttentionCase("cmt_b-a-256", 76, 64, 1, 8),
)


__all__ = [
    "REDUCED_ATTENTION_CASES",
    "ReducedAttentionCase",
    "ReducedAttentionWeights",
    "reduced_attention",
    "reduced_attention_reference",
    "reduced_attention_work",
]
