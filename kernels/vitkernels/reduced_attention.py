"""CMT's lightweight attention sub-block: x + proj(softmax(q k^T * scale + bias) v) with few keys.

q comes from LN(x); k and v from r, LN(x) reduced by one depthwise k x k stride k convolution and a batch norm (r is
LN(x) itself at reduction 1). The cost that cannot be avoided is x read and y written once, and x once more for the
keys, which must be known before the first row.

Inference, C <= 128 and M <= 256: two kernels (`_reduced_block`), with nothing of size [N, C] between them. Elsewhere
PyTorch's layer norm and matrix products stand around `depthwise_conv2d` (reduction, its bias and the evaluated batch
norm in one kernel) and `bias_attention`. Training always takes this second form: there the batch norm uses the
statistics of its batch, whose sums come out of the reduction's own kernel (`depthwise_conv2d_stats`); what is left of
the norm is one multiply-add on the reduced map.

Source: CMT (2107.06263), section 3.2; parameter names of its released code in comments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkernels._common import INTERPRETED, LOG2E, cdiv, kernels_run_on
from vitkernels._reduced_block import reduced_block_kernel, reduced_kv_kernel
from vitkernels.bias_attention import bias_attention, bias_attention_reference
from vitkernels.depthwise_conv import (
    batch_norm_affine,
    depthwise_conv2d,
    depthwise_conv2d_reference,
    depthwise_conv2d_stats,
)


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

    Chosen by shape and mode, never silently wrong: without gradients, at C <= 128 and M <= 256, two kernels do it all;
    otherwise library products stand around the fused convolution and attention. In training the batch norm uses the
    batch's statistics (their sums fused into the reduction) and updates the running ones. CPU tensors run plain
    PyTorch, except under TRITON_INTERPRET=1. Under autocast x and the weights of products are cast to its dtype.

    Args:
        x: [B, N, C] tokens by rows of the grid, N = h * w; fp16, bf16 or fp32 (on the CPU also fp64).
        bias: [heads, N, M], M = (h // r) * (w // r), any floating dtype.
        weights: parameters; q, k, v, proj and reduce weights in x's dtype, vectors in any floating dtype.
        grid: (h, w), divisible by the reduction r (read off weights.reduce_weight).
        heads: divides C.
        scale: of the scores, default (C / heads) ** -0.5.

    Returns: [B, N, C] in x's dtype.

    Raises: ValueError on shape, dtype or device mismatch.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        cast = {n: t.to(dtype) for n, t in weights._asdict().items() if t is not None and n in _PRODUCTS}
        weights = weights._replace(**cast)
    _validate(x, bias, weights, grid, heads)
    scale = (x.shape[2] // heads) ** -0.5 if scale is None else float(scale)
    with torch.autocast(x.device.type, enabled=False):
        if not training and block_fits(x.shape[2], heads, bias.shape[2], x.dtype) and not _needs_grad(x, bias, weights):
            factor, offset = _evaluated_norm(weights, bn_eps)
            affine = (factor, _folded_shift(weights, factor, offset))
            w = weights
            linear = (w.q_weight, w.q_bias, w.k_weight, w.k_bias, w.v_weight, w.v_bias, w.proj_weight, w.proj_bias)
            return _BLOCK(
                x, bias, w.norm_weight, w.norm_bias, *linear, w.reduce_weight, *affine, grid[1], heads, norm_eps, scale
            )
        return _composed(x, bias, weights, grid, heads, training, momentum, norm_eps, bn_eps, scale)


_PRODUCTS = ("q_weight", "k_weight", "v_weight", "proj_weight", "reduce_weight")


def _needs_grad(x: Tensor, bias: Tensor, weights: ReducedAttentionWeights) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, bias, *weights))


def block_fits(channels: int, heads: int, keys: int, dtype: torch.dtype) -> bool:
    """Whether the whole-block kernels serve a shape: the projections, keys and values of an image stay on chip."""
    item = 2 if dtype in (torch.float16, torch.bfloat16) else 4
    if dtype == torch.float64 or (INTERPRETED and dtype == torch.bfloat16):
        return False
    padded, keys = triton.next_power_of_2(channels), max(16, triton.next_power_of_2(keys))
    depth = heads * max(16, triton.next_power_of_2(channels // heads))
    return channels <= 128 and keys <= 256 and 2 * depth * (padded + keys) * item <= 160 * 1024


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
    factor, shift, mean, variance = batch_norm_affine(sums, count, w.bn_weight, w.bn_bias, eps)
    if w.bn_mean is not None and w.bn_var is not None:
        with torch.no_grad():
            w.bn_mean.lerp_(mean.to(w.bn_mean.dtype), momentum)
            w.bn_var.lerp_((variance * (count / max(count - 1, 1))).to(w.bn_var.dtype), momentum)
    return (y.to(factor.dtype) * factor[:, None, None] + shift[:, None, None]).to(y.dtype)


def _validate(x: Tensor, bias: Tensor, w: ReducedAttentionWeights, grid: tuple[int, int], heads: int) -> None:
    def require(good: bool, what: str) -> None:
        if not good:
            raise ValueError(f"reduced_attention: {what}")

    require(x.dim() == 3, f"x {list(x.shape)} should be [B, N, C]")
    tokens, channels = x.shape[1:]
    require(grid[0] * grid[1] == tokens, f"grid {tuple(grid)} should hold the N of x {list(x.shape)}")
    require(channels % heads == 0, f"heads {heads} should divide the C of x {list(x.shape)}")
    r = 1 if w.reduce_weight is None else w.reduce_weight.shape[-1]
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
        shape = (channels, 1, r, r) if name == "reduce_weight" else (channels, channels)
        shape = shape if name in _PRODUCTS else (channels,)
        require(tuple(t.shape) == shape, f"{name} {list(t.shape)} should be {list(shape)} for x {list(x.shape)}")
        require(name not in _PRODUCTS or t.dtype == x.dtype, f"{name} is {t.dtype}, x is {x.dtype}; should be equal")


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
    batch: int, tokens: int, keys: int, channels: int, *, itemsize: int = 2, bias_itemsize: int = 4, heads: int = 1
) -> tuple[int, int]:
    """FLOPs (2 per multiply-add, matrix products and reduction) and bytes of the forward that cannot be avoided.

    Bytes: x read and y written once, and the bias once; weights and the reduced map are small and left out. Reading x
    a second time for the keys is this design's own.
    """
    rows = batch * tokens
    products = 2 * rows * channels * channels + 2 * batch * keys * channels * channels + 2 * rows * keys * channels
    reduction = rows * channels if keys < tokens else 0
    return 2 * (products + reduction), 2 * rows * channels * itemsize + heads * tokens * keys * bias_itemsize


@dataclass(frozen=True)
class BlockPlan:
    """Blocks and grids of the two kernels at one shape."""

    kv: dict[str, int]
    block: dict[str, int]
    kv_grid: tuple[int]
    grid: tuple[int, int]
    tiles: int


@lru_cache(maxsize=1024)
def plan_block(batch: int, tokens: int, keys: int, channels: int, heads: int, itemsize: int) -> BlockPlan:
    """Chosen by shape alone; the audit calls it too."""
    block_c = max(16, triton.next_power_of_2(channels))
    block_m = max(16, triton.next_power_of_2(keys))
    # 128 rows share the on-chip weights with two warps per scheduler; fewer where scores or fp32 would spill.
    block_n = 128 if itemsize == 2 and block_m <= 64 else 64
    block_n = min(block_n, max(16, triton.next_power_of_2(tokens)))
    pieces = cdiv(tokens, block_n)
    tiles = max(1, min(pieces, batch * pieces // 528))
    head = {"BLOCK_D": max(16, triton.next_power_of_2(channels // heads))}
    return BlockPlan(
        kv={"BLOCK_M": 16, "BLOCK_C": block_c},
        block={"BLOCK_N": block_n, "BLOCK_M": block_m, "BLOCK_C": block_c, **head},
        kv_grid=(cdiv(batch * keys, 16),),
        grid=(cdiv(pieces, tiles), batch),
        tiles=tiles,
    )


_LIBRARY = torch.library.Library("vitkernels", "FRAGMENT")
_LIBRARY.define(
    "reduced_attention_block(Tensor x, Tensor bias, Tensor norm_weight, Tensor norm_bias, Tensor q_weight, "
    "Tensor? q_bias, Tensor k_weight, Tensor? k_bias, Tensor v_weight, Tensor? v_bias, Tensor proj_weight, "
    "Tensor? proj_bias, Tensor? reduce_weight, Tensor? scale, Tensor? shift, SymInt width, SymInt heads, "
    "float norm_eps, float attention_scale) -> Tensor"
)
_BLOCK = torch.ops.vitkernels.reduced_attention_block.default


def _block(
    x: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    k_weight: Tensor,
    k_bias: Tensor | None,
    v_weight: Tensor,
    v_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    reduce_weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    width: int,
    heads: int,
    norm_eps: float,
    attention_scale: float,
) -> Tensor:
    batch, tokens, channels = x.shape
    if not kernels_run_on(x):
        ones = None if scale is None else torch.ones_like(scale)
        zeros = None if scale is None else torch.zeros_like(scale)
        w = ReducedAttentionWeights(
            norm_weight,
            norm_bias,
            *(q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, proj_weight, proj_bias),
            *(reduce_weight, None, scale, shift, zeros, ones),
        )
        grid = (tokens // width, width)
        return reduced_attention_reference(
            x, bias, w, grid, heads, norm_eps=norm_eps, bn_eps=0.0, scale=attention_scale
        )
    keys = bias.shape[2]
    x = x if x.stride(2) == 1 else x.contiguous()
    plan = plan_block(batch, tokens, keys, channels, heads, x.element_size())
    r = 1 if reduce_weight is None else reduce_weight.shape[-1]
    k, v = x.new_empty((2, batch, keys, channels)).unbind(0)
    y = torch.empty((batch, tokens, channels), dtype=x.dtype, device=x.device)
    common = {
        "x_ptr": x,
        "gain_ptr": norm_weight.contiguous(),
        "offset_ptr": norm_bias.contiguous(),
        "stride_xb": x.stride(0),
        "stride_xn": x.stride(1),
        "M": keys,
        "C": channels,
        "eps": norm_eps,
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32",
        "num_warps": 4,
    }
    reduced_kv_kernel[plan.kv_grid](
        k_ptr=k,
        v_ptr=v,
        taps_ptr=None if reduce_weight is None else reduce_weight.contiguous(),
        scale_ptr=scale,
        shift_ptr=shift,
        wk_ptr=k_weight.contiguous(),
        bk_ptr=k_bias,
        wv_ptr=v_weight.contiguous(),
        bv_ptr=v_bias,
        width=width,
        reduced_width=width // r,
        rows=batch * keys,
        R=r,
        HAS_BK=k_bias is not None,
        HAS_BV=v_bias is not None,
        **common,
        **plan.kv,
        num_stages=2,
    )
    reduced_block_kernel[plan.grid](
        y_ptr=y,
        k_ptr=k,
        v_ptr=v,
        bias_ptr=bias.contiguous(),
        wq_ptr=q_weight.contiguous(),
        bq_ptr=q_bias,
        wo_ptr=proj_weight.contiguous(),
        bo_ptr=proj_bias,
        N=tokens,
        tiles=plan.tiles,
        scale=attention_scale * LOG2E,
        HEADS=heads,
        D=channels // heads,
        HAS_BQ=q_bias is not None,
        HAS_BO=proj_bias is not None,
        **common,
        **plan.block,
        num_stages=1,
    )
    return y


def _block_fake(x: Tensor, *args: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_LIBRARY.impl("reduced_attention_block", _block, "CPU")
_LIBRARY.impl("reduced_attention_block", _block, "CUDA")
torch.library.register_fake("vitkernels::reduced_attention_block", _block_fake, lib=_LIBRARY)


@register_flop_formula(torch.ops.vitkernels.reduced_attention_block)
def _block_flops(x: Any, bias: Any, *args: Any, **kwargs: Any) -> int:
    return reduced_attention_work(x[0], x[1], bias[2], x[2])[0]


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
