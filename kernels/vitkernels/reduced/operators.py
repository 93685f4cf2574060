"""The opaque operator of the whole-block kernels: where it serves, its blocks, its launches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkernels.reduced.kernels import reduced_block_kernel, reduced_kv_kernel
from vitkernels.reduced.reference import ReducedAttentionWeights, reduced_attention_reference, reduced_attention_work
from vitkernels.runtime.call import Call, cdiv, run_all
from vitkernels.runtime.constants import LOG2E, LOWEST_EXPANDED, OUTSIDE
from vitkernels.runtime.device import (
    EVERY_DEVICE,
    INTERPRETED,
    MULTIPROCESSORS,
    arch_of,
    kernels_run_on,
    reads_operands_from_registers,
    reads_results_from_tensor_memory,
)


def block_fits(channels: int, heads: int, keys: int, dtype: torch.dtype, arch: int) -> bool:
    """Whether the whole-block kernels serve a shape: projections, keys and values of an image stay on chip.

    Widths that are no multiple of 16 (CMT-Ti, XS, B) would load two bytes at a time and spill registers, fp32 would
    multiply without the matrix unit, and scores of more than 64 keys leave no registers for the rest: library products
    and `bias_attention` are better there. More than 64 channels take 128 KB of shared memory, of which GPUs without a
    data centre's (sm_86, sm_89, sm_120) have 99.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return False
    widest = 128 if arch in (80, 87) or 90 <= arch < 120 else 64
    return channels <= widest and channels % 16 == 0 and channels // heads >= 16 and keys <= 64


def block_serves(x: Tensor, dtype: torch.dtype, heads: int, keys: int) -> bool:
    """`block_fits` for x [B, N, C] where it is; Triton's interpreter has no products of bf16."""
    fits = block_fits(x.shape[2], heads, keys, dtype, arch_of(x))
    return fits and not (INTERPRETED and dtype == torch.bfloat16)


def padded_keys(keys: int) -> int:
    return max(16, triton.next_power_of_2(keys))


def expand_block_bias(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """[heads, N, M] as the block reads it fastest: [heads, N, padded M] of dtype, in units of log2; no gradient."""
    natural = bias.detach().float()
    log2 = (natural * LOG2E.value).clamp(min=LOWEST_EXPANDED.value).masked_fill(natural.isneginf(), OUTSIDE.value)
    return torch.nn.functional.pad(log2.to(dtype), (0, padded_keys(bias.shape[2]) - bias.shape[2]), value=OUTSIDE.value)


@dataclass(frozen=True)
class BlockPlan:
    """Block sizes of the two kernels at one shape."""

    BLOCK_N: int
    BLOCK_M: int
    BLOCK_C: int
    BLOCK_D: int
    tiles: int  # tiles of BLOCK_N rows that a program walks over
    groups: int  # programs of an image


@lru_cache(maxsize=1024)
def plan_block(batch: int, tokens: int, keys: int, channels: int, heads: int, arch: int) -> BlockPlan:
    """Chosen by shape and architecture alone; the audit calls it too."""
    block_m = padded_keys(keys)
    # Eight warps hold x, one head's scores and the result of 128 rows without spills up to 64 channels; beyond, 64 rows
    # (128 where the matrix unit reads from shared memory and adds up in registers) and one tile per program, since a
    # loop around it would spill.
    tall = channels <= 64 or not (reads_operands_from_registers(arch) or reads_results_from_tensor_memory(arch))
    block_n = min(128 if tall else 64, max(16, triton.next_power_of_2(tokens)))
    pieces = cdiv(tokens, block_n)
    # A program fills an SM and fetches all weights first: one program each for the multiprocessors of an H100 or H200.
    tiles = cdiv(pieces, min(pieces, max(1, MULTIPROCESSORS // batch))) if channels <= 64 else 1
    block_d = max(16, triton.next_power_of_2(channels // heads))
    return BlockPlan(block_n, block_m, max(16, triton.next_power_of_2(channels)), block_d, tiles, cdiv(pieces, tiles))


_LIBRARY = torch.library.Library("vitkernels", "FRAGMENT")
_LIBRARY.define(
    "reduced_attention_block(Tensor x, Tensor bias, Tensor norm_weight, Tensor norm_bias, Tensor q_weight, "
    "Tensor? q_bias, Tensor k_weight, Tensor? k_bias, Tensor v_weight, Tensor? v_bias, Tensor proj_weight, "
    "Tensor? proj_bias, Tensor? reduce_weight, Tensor? scale, Tensor? shift, SymInt width, SymInt heads, "
    "float norm_eps, float attention_scale, bool expanded=False) -> Tensor"
)
block_op = torch.ops.vitkernels.reduced_attention_block.default


def block_calls(
    y: Tensor,
    k: Tensor,
    v: Tensor,
    x: Tensor,
    bias: Tensor,
    w: ReducedAttentionWeights,
    scale: Tensor | None,
    shift: Tensor | None,
    width: int,
    heads: int,
    norm_eps: float,
    attention_scale: float,
    arch: int,
    expanded: bool = False,
) -> list[Call]:
    """The two launches; every tensor contiguous but x, whose last dim is. Tensors may live on the meta device.

    expanded: bias comes from `expand_block_bias`.
    """
    batch, tokens, channels = x.shape
    r = 1 if w.reduce_weight is None else w.reduce_weight.shape[-1]
    keys = tokens // (r * r)
    plan = plan_block(batch, tokens, keys, channels, heads, arch)
    common = {
        "x_ptr": x,
        "k_ptr": k,
        "v_ptr": v,
        "gain_ptr": w.norm_weight,
        "offset_ptr": w.norm_bias,
        "stride_xb": x.stride(0),
        "stride_xn": x.stride(1),
        "M": keys,
        "C": channels,
        "eps": norm_eps,
        "BLOCK_C": plan.BLOCK_C,
    }
    reduction = {
        "taps_ptr": w.reduce_weight,
        "scale_ptr": scale,
        "shift_ptr": shift,
        "wk_ptr": w.k_weight,
        "bk_ptr": w.k_bias,
        "wv_ptr": w.v_weight,
        "bv_ptr": w.v_bias,
        "width": width,
        "reduced_width": width // r,
        "rows": batch * keys,
        "R": r,
        "HAS_BK": w.k_bias is not None,
        "HAS_BV": w.v_bias is not None,
        "BLOCK_M": 16,
    }
    attention = {
        "y_ptr": y,
        "bias_ptr": bias,
        "wq_ptr": w.q_weight,
        "bq_ptr": w.q_bias,
        "wo_ptr": w.proj_weight,
        "bo_ptr": w.proj_bias,
        "N": tokens,
        "tiles": plan.tiles,
        "groups": plan.groups,
        "scale": attention_scale * LOG2E.value if expanded else attention_scale,
        "HEADS": heads,
        "D": channels // heads,
        "HAS_BQ": w.q_bias is not None,
        "HAS_BO": w.proj_bias is not None,
        "EXPANDED": expanded,
        "BLOCK_N": plan.BLOCK_N,
        "BLOCK_M": plan.BLOCK_M,
        "BLOCK_D": plan.BLOCK_D,
    }
    return [
        Call(
            kernel=reduced_kv_kernel,
            args=common | reduction,
            grid=cdiv(batch * keys, 16),
            pass_name="fwd_kv",
            num_warps=8,
            num_stages=2,
        ),
        Call(
            kernel=reduced_block_kernel,
            args=common | attention,
            grid=plan.groups * batch,
            pass_name="fwd",
            scores=batch * heads * tokens * keys,
            num_warps=8,
            num_stages=1,
        ),
    ]


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
    expanded: bool = False,
) -> Tensor:
    dense = [
        None if t is None else t.contiguous()
        for t in (q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, proj_weight, proj_bias, reduce_weight)
    ]
    w = ReducedAttentionWeights(norm_weight.contiguous(), norm_bias.contiguous(), *dense)  # type: ignore[arg-type]
    batch, tokens, channels = x.shape
    r = 1 if reduce_weight is None else reduce_weight.shape[-1]
    keys = tokens // (r * r)
    if not kernels_run_on(x) or not x.numel():  # nothing to launch for an empty batch
        if expanded:
            bias = bias[..., :keys].float() / LOG2E.value
        if scale is not None and shift is not None:
            # The affine map as a batch norm of statistics (0, 1); torch 2.11 refuses an eps of 0.
            w = w._replace(bn_weight=scale, bn_bias=shift, bn_mean=scale * 0, bn_var=scale * 0 + 1)
        grid = (tokens // width, width)
        none = torch.finfo(torch.float32).tiny  # which 1 swallows
        return reduced_attention_reference(
            x, bias, w, grid, heads, norm_eps=norm_eps, bn_eps=none, scale=attention_scale
        )
    x = x if x.stride(2) == 1 else x.contiguous()
    y = torch.empty((batch, tokens, channels), dtype=x.dtype, device=x.device)
    k, v = torch.empty((2, batch, keys, channels), dtype=x.dtype, device=x.device).unbind(0)
    bias = bias.contiguous()
    calls = block_calls(
        y, k, v, x, bias, w, scale, shift, width, heads, norm_eps, attention_scale, arch_of(x), expanded
    )
    run_all(calls)
    return y


def _block_fake(x: Tensor, *args: Any) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_LIBRARY.impl("reduced_attention_block", _block, EVERY_DEVICE)
torch.library.register_fake("vitkernels::reduced_attention_block", _block_fake, lib=_LIBRARY)


@register_flop_formula(torch.ops.vitkernels.reduced_attention_block)
def _block_flops(x: Any, bias: Any, *args: Any, **kwargs: Any) -> int:
    taps = args[10]  # reduce_weight: an expanded bias does not tell how many keys there are
    return reduced_attention_work(x[0], x[1], x[1] if taps is None else x[1] // taps[-1] ** 2, x[2])[0]
