"""Which forward kernel a shape gets, with which blocks, images, stages and warps.

For bias_attention, relative_attention and whoever else brings a dense bias. The numbers are the fastest that the
audit's clock found among those without spills, at the registered cases on sm_80, sm_90 and sm_100.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from vitkernels.attention.blocks import images_in_waves, padded_head_dim, stride_alignment
from vitkernels.attention.forward.bias_held import bias_held_kernel
from vitkernels.attention.forward.streamed import streamed_kernel
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.constants import LOG2E
from vitkernels.runtime.device import (
    multiprocessors_of,
    reads_operands_from_registers,
    reads_results_from_tensor_memory,
)


@dataclass(frozen=True)
class Blocks:
    """What a program works on at a time, and with how many stages and warps."""

    rows: int
    keys: int
    images: int
    stages: int
    warps: int = 4


def holds_bias(q: Tensor, n_keys: int) -> bool:
    """Whether the bias of all keys stays in registers: 1.3 to 1.7 times as fast as to stream it where it fits."""
    return n_keys <= 64 and q.shape[3] <= 64 and q.element_size() == 2


def held_blocks(q: Tensor, n_keys: int, arch: int) -> Blocks:
    B, H, N, D = q.shape
    keys = max(16, triton.next_power_of_2(n_keys))
    if B * cdiv(N, 64) * H <= 4 * multiprocessors_of(q, arch):  # all at once: no program waits for a second image
        return Blocks(rows=64, keys=keys, images=1, stages=1)
    # Of 64 keys of larger heads three stages fill Hopper's shared memory with two programs; on sm_100 narrow rows spill
    short = {9: keys > 32, 10: D % 16 > 0}.get(arch // 10, False)
    stages = 2 if D > 32 and short else 3
    resident = 4 if D <= 32 and not reads_operands_from_registers(arch) else 3
    images = images_in_waves(B, cdiv(N, 64) * H, multiprocessors_of(q, arch), resident)
    return Blocks(rows=64, keys=keys, images=images, stages=stages)


def streamed_blocks(q: Tensor, n_keys: int, wide: bool, arch: int) -> Blocks:
    B, H, N, D = q.shape
    if q.element_size() == 4:
        return Blocks(rows=32 if D <= 32 else 16, keys=16, images=1, stages=2)
    if D > 64:
        return Blocks(rows=64, keys=32, images=1, stages=3)
    tall = reads_results_from_tensor_memory(arch) and wide and cdiv(N, 128) * 128 <= 1.15 * cdiv(N, 64) * 64
    if tall:  # what is added up lies in tensor memory, so that the registers hold 128 queries
        return Blocks(rows=128, keys=32, images=1, stages=3)
    # Two images share a block of the bias, which is half of what comes from L2; not where half of the GPU would idle.
    shared = B > 1 and cdiv(B, 2) * cdiv(N, 64) * H >= 2 * multiprocessors_of(q, arch)
    keys = 32 if D <= 32 or reads_results_from_tensor_memory(arch) else 16
    if D <= 32 and n_keys % 32 == 16 and reads_results_from_tensor_memory(arch):
        keys = 16  # whole blocks: an eighth faster at 144 keys, where the other spills in Triton 3.6
    images = 2 if shared else 1
    # What comes from L2 bounds Hopper: three images share a block, or twice as many queries, where registers allow it,
    # which is where all blocks of keys are whole.
    if arch // 10 == 9 and shared and q.dtype == torch.bfloat16 and wide and n_keys % keys == 0:
        if D <= 32 and n_keys >= 512 and B >= 32:
            images = 3
        if D > 32 and cdiv(N, 128) * 128 <= 1.05 * N:
            return Blocks(rows=128, keys=keys, images=images, stages=3, warps=8)
    return Blocks(rows=64, keys=keys, images=images, stages=3)


def _bias_alignment(bias: Tensor, n_keys: int, expanded: int) -> int:
    """The largest of 4, 2, 1 that divides a bias' strides and, as far as rows are read to their last key, keys."""
    sizes = (bias.stride(0), bias.stride(1), 0 if expanded else n_keys)
    return next(align for align in (4, 2, 1) if not any(size % align for size in sizes))


def forward_calls(
    out: Tensor, lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, arch: int,
    expanded: int,
) -> list[Call]:  # fmt: skip
    """The launch that fills out and, where given, lse fp32, as `store_lse` fills it.

    expanded is one of `DENSE`, `TABLE`, `PADDED`.
    """
    B, H, N, D = q.shape
    M = k.shape[2]
    align = stride_alignment(q, k, v, out, bias=bias)
    held = holds_bias(q, M)
    bias_align = _bias_alignment(bias, M, expanded) if align else 0
    blocks = held_blocks(q, M, arch) if held else streamed_blocks(q, M, min(align, 2 * bias_align) == 8, arch)
    args = {
        "out_ptr": out, "lse_ptr": lse, "q_ptr": q, "k_ptr": k, "v_ptr": v, "bias_ptr": bias,
        "out_stride_b": out.stride(0), "out_stride_h": out.stride(1), "out_stride_n": out.stride(2),
        "q_stride_b": q.stride(0), "q_stride_h": q.stride(1), "q_stride_n": q.stride(2),
        "k_stride_b": k.stride(0), "k_stride_h": k.stride(1), "k_stride_m": k.stride(2),
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_m": v.stride(2),
        "bias_stride_h": bias.stride(0), "bias_stride_n": bias.stride(1), "B": B, "H": H, "N": N, "M": M,
        "score_scale": scale * LOG2E.value if expanded else scale, "EXPANDED": expanded, "ALIGN": align,
        "BIAS_ALIGN": bias_align, "D": D, "BLOCK_D": padded_head_dim(D), "BLOCK_N": blocks.rows,
        "BLOCK_M": blocks.keys, "IMAGES": blocks.images, "STAGES": blocks.stages,
    }  # fmt: skip
    if not held:
        width = bias.stride(1) if expanded else M
        args |= {"WHOLE": M % blocks.keys == 0, "BIAS_WHOLE": width % blocks.keys == 0}
    return [Call(kernel=bias_held_kernel if held else streamed_kernel, args=args, pass_name="fwd", products=2,
                 grid=cdiv(N, blocks.rows) * H * cdiv(B, blocks.images), scores=B * H * N * M, num_warps=blocks.warps,
                 num_stages=blocks.stages)]  # fmt: skip
