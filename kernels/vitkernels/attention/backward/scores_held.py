"""All gradients of bias_attention in one pass, where one tile holds the scores of an image (windows of Swin, the last
stage of CoAtNet and of CMT); see plan.py. A program owns a head and walks through a slice of the images: scores are
computed once for dQ, dK, dV and dBias, which stays in registers.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention.tiles import (
    aligned,
    load_bias_or_last,
    load_lse,
    load_rows_or_last,
    lse_step,
    row_step,
    softmax_weights,
    store_rows,
    store_scores,
)
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.device import reads_operands_from_registers, reads_results_from_tensor_memory


@triton.jit
def _bwd_short_kernel(
    dq_ptr,  # [B, H, N, D]
    dk_ptr,  # [B, H, M, D]
    dv_ptr,  # [B, H, M, D], strides of dk
    dbias_ptr,  # [slices, H, N, M] fp32, or None
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, M, D]
    v_ptr,  # [B, H, M, D]
    bias_ptr,  # [H, N, M]
    out_ptr,  # [B, H, N, D]
    do_ptr,  # [B, H, N, D]
    lse_ptr,  # as `store_lse` fills it
    dq_stride_b,
    dq_stride_h,
    dq_stride_n,
    dk_stride_b,
    dk_stride_h,
    dk_stride_m,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_m,
    v_stride_b,
    v_stride_h,
    v_stride_m,
    out_stride_b,
    out_stride_h,
    out_stride_n,
    do_stride_b,
    do_stride_h,
    do_stride_n,
    bias_stride_h,
    bias_stride_n,
    B,
    H,
    N,
    M,
    IMAGES,  # images of one program
    scale,
    score_scale,
    EXPANDED: tl.constexpr,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    pid = tl.program_id(0)
    h, part = pid % H, pid // H
    h64 = h.to(tl.int64)
    bias_ptr += h64 * bias_stride_h
    q_ptr += h64 * aligned(q_stride_h, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN)
    do_ptr += h64 * aligned(do_stride_h, ALIGN)
    dq_ptr += h64 * aligned(dq_stride_h, ALIGN)
    dk_ptr += h64 * aligned(dk_stride_h, ALIGN)
    dv_ptr += h64 * aligned(dk_stride_h, ALIGN)
    rows, keys = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    dbias = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for b in range(part * IMAGES, min(part * IMAGES + IMAGES, B)):
        b64 = tl.cast(b, tl.int64)
        k = load_rows_or_last(k_ptr + b64 * aligned(k_stride_b, ALIGN), aligned(k_stride_m, ALIGN), keys, M, D, BLOCK_D)
        v = load_rows_or_last(v_ptr + b64 * aligned(v_stride_b, ALIGN), aligned(v_stride_m, ALIGN), keys, M, D, BLOCK_D)
        q = load_rows_or_last(q_ptr + b64 * aligned(q_stride_b, ALIGN), aligned(q_stride_n, ALIGN), rows, N, D, BLOCK_D)
        do_b, out_b = do_ptr + b64 * aligned(do_stride_b, ALIGN), out_ptr + b64 * aligned(out_stride_b, ALIGN)
        do = load_rows_or_last(do_b, aligned(do_stride_n, ALIGN), rows, N, D, BLOCK_D)
        out = load_rows_or_last(out_b, aligned(out_stride_n, ALIGN), rows, N, D, BLOCK_D)
        lse = load_lse(lse_ptr + (b64 * H + h) * lse_step(N, EXPANDED), rows, rows, N, EXPANDED)
        delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
        bias = load_bias_or_last(bias_ptr, row_step(bias_stride_n, ALIGN), rows, N, keys, M, EXPANDED)
        p = softmax_weights(tl.dot(q, tl.trans(k)) * score_scale + bias, lse, EXPANDED)
        dk_b, dv_b = dk_ptr + b64 * aligned(dk_stride_b, ALIGN), dv_ptr + b64 * aligned(dk_stride_b, ALIGN)
        dv = tl.dot(tl.trans(p.to(q.dtype)), do)
        store_rows(dv_b, aligned(dk_stride_m, ALIGN), dv, keys, M, D, BLOCK_D)
        ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
        dbias += ds
        low = ds.to(q.dtype)
        dk = tl.dot(tl.trans(low), q) * scale
        store_rows(dk_b, aligned(dk_stride_m, ALIGN), dk, keys, M, D, BLOCK_D)
        dq_b = dq_ptr + b64 * aligned(dq_stride_b, ALIGN)
        store_rows(dq_b, aligned(dq_stride_n, ALIGN), tl.dot(low, k) * scale, rows, N, D, BLOCK_D)
    if dbias_ptr is not None:
        dbias_ptr += (tl.cast(part, tl.int64) * H + h) * N * M
        store_scores(dbias_ptr, dbias, rows, N, keys, M)


def fits_short(n: int, m: int, head_dim: int, itemsize: int, arch: int) -> bool:
    """Whether one tile holds all scores of an image and head, and the registers its gradients.

    Heads of more than 32 channels leave none for the sums of several images, and on sm_100 two passes are faster.
    """
    if itemsize != 2 or reads_operands_from_registers(arch) or max(n, m) > 64:
        return False
    return head_dim <= (32 if reads_results_from_tensor_memory(arch) else 64)


def short_calls(
    dq: Tensor, dk: Tensor, dv: Tensor, dbias_parts: Tensor | None, shared: dict[str, Any], images: int,
    arch: int,
) -> list[Call]:  # fmt: skip
    """The launch that fills dq, dk, dv and, where given, dbias_parts."""
    B, H, N, _ = dq.shape
    args = {name: value for name, value in shared.items() if name != "delta_ptr"} | {
        "dq_ptr": dq, "dk_ptr": dk, "dv_ptr": dv, "dbias_ptr": dbias_parts,
        "dq_stride_b": dq.stride(0), "dq_stride_h": dq.stride(1), "dq_stride_n": dq.stride(2),
        "dk_stride_b": dk.stride(0), "dk_stride_h": dk.stride(1), "dk_stride_m": dk.stride(2),
        "IMAGES": images, "BLOCK_N": 64, "BLOCK_M": 64,
    }  # fmt: skip
    return [Call(kernel=_bwd_short_kernel, args=args, grid=H * cdiv(B, images), pass_name="bwd", products=5,
                 scores=B * H * N * dk.shape[2], num_stages=1,
                 num_warps=8 if reads_results_from_tensor_memory(arch) else 4)]  # fmt: skip
