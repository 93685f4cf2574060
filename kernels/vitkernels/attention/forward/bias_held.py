"""Forward where one tile holds all keys: its bias stands still in registers and images move past it.

A program owns a tile of queries of one head, and copies the next image's q, k and v to shared memory while it
multiplies those of one.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.attention.forward.softmax import finish, weigh_all
from vitkernels.attention.tiles import aligned, load_bias_or_last, load_rows_or_last


@triton.jit
def bias_held_kernel(
    out_ptr,  # [B, H, N, D]
    lse_ptr,  # as `store_lse` fills it, or None
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, M, D]
    v_ptr,  # [B, H, M, D]
    bias_ptr,  # [H, N, M]
    out_stride_b,
    out_stride_h,
    out_stride_n,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_m,
    v_stride_b,
    v_stride_h,
    v_stride_m,
    bias_stride_h,
    bias_stride_n,
    B,
    H,
    N,
    M,
    IMAGES,  # images of one program
    score_scale,
    EXPANDED: tl.constexpr,  # the bias is padded to a multiple of 16 keys; it and scores are in units of log2
    ALIGN: tl.constexpr,
    BIAS_ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,  # at least M
    STAGES: tl.constexpr,  # images on their way at once, and one in use
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    rows, h = pid % tiles * BLOCK_N + tl.arange(0, BLOCK_N), (pid // tiles) % H
    first = pid // (tiles * H) * IMAGES
    keys = tl.arange(0, BLOCK_M)
    h64 = h.to(tl.int64)
    bias_ptr += h64 * aligned(bias_stride_h, BIAS_ALIGN)
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    out_step, out_row = aligned(out_stride_b, ALIGN), aligned(out_stride_n, ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN)
    bias_row = aligned(bias_stride_n, BIAS_ALIGN)
    bias = load_bias_or_last(bias_ptr, bias_row, rows, N, keys, aligned(M, BIAS_ALIGN), EXPANDED)
    for b in tl.range(first, min(first + IMAGES, B), num_stages=STAGES):
        b64 = tl.cast(b, tl.int64)
        q = load_rows_or_last(q_ptr + b64 * q_step, q_row, rows, N, D, BLOCK_D)
        k = load_rows_or_last(k_ptr + b64 * k_step, k_row, keys, M, D, BLOCK_D)
        v = load_rows_or_last(v_ptr + b64 * v_step, v_row, keys, M, D, BLOCK_D)
        top, total, acc = weigh_all(q, k, v, bias, score_scale, EXPANDED)
        finish(out_ptr + b64 * out_step, out_row, lse_ptr, b64 * H + h, rows, N, top, total, acc, D, EXPANDED)
