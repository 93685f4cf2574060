"""Forward for any number of keys: blocks of keys are copied to shared memory while earlier ones are multiplied.

A program owns a tile of queries of one head and of a few images, which share each block of the bias.
"""

# ruff: noqa: RUF005 - Triton joins tuples by + only
# Parameters of kernels are Triton values, which have no Python types; tuples change their length as they grow.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.attention.forward.softmax import absorb, finish, nothing_yet
from vitkernels.attention.tiles import (
    aligned,
    load_bias_inside,
    load_bias_or_last,
    load_rows_inside,
    load_rows_or_last,
)


@triton.jit
def streamed_kernel(
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
    score_scale,
    EXPANDED: tl.constexpr,  # the bias is padded to a multiple of 16 keys; it and scores are in units of log2
    ALIGN: tl.constexpr,
    BIAS_ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WHOLE: tl.constexpr,  # blocks of keys end where the keys do
    BIAS_WHOLE: tl.constexpr,  # and where the bias does, padding included
    IMAGES: tl.constexpr,  # share each block of the bias; no more than B
    STAGES: tl.constexpr,  # blocks on their way at once, and one in use
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    rows, h = pid % tiles * BLOCK_N + tl.arange(0, BLOCK_N), (pid // tiles) % H
    # The last images begin early where the batch is no multiple: two programs compute some, and store the same.
    b = tl.minimum(pid // (tiles * H) * IMAGES, B - IMAGES).to(tl.int64)
    h64 = h.to(tl.int64)
    bias_ptr += h64 * aligned(bias_stride_h, BIAS_ALIGN)
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    out_step, out_row = aligned(out_stride_b, ALIGN), aligned(out_stride_n, ALIGN)
    bias_row, bias_keys = aligned(bias_stride_n, BIAS_ALIGN), aligned(M, BIAS_ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN)

    qs, ks, vs, tops, totals, accs = (), (), (), (), (), ()
    for i in tl.static_range(IMAGES):
        qs = qs + (load_rows_or_last(q_ptr + (b + i) * q_step, q_row, rows, N, D, BLOCK_D),)
        ks, vs = ks + (k_ptr + (b + i) * k_step,), vs + (v_ptr + (b + i) * v_step,)
        top, total, acc = nothing_yet(BLOCK_N, BLOCK_D)
        tops, totals, accs = tops + (top,), totals + (total,), accs + (acc,)
    for start in tl.range(0, M, BLOCK_M, num_stages=STAGES):
        keys = start + tl.arange(0, BLOCK_M)
        if BIAS_WHOLE:
            bias = load_bias_inside(bias_ptr, bias_row, rows, N, keys, EXPANDED)
        else:
            bias = load_bias_or_last(bias_ptr, bias_row, rows, N, keys, bias_keys, EXPANDED)
        new_tops, new_totals, new_accs = (), (), ()
        for i in tl.static_range(IMAGES):
            if WHOLE:
                k = load_rows_inside(ks[i], k_row, keys, D, BLOCK_D)
                v = load_rows_inside(vs[i], v_row, keys, D, BLOCK_D)
            else:
                k = load_rows_or_last(ks[i], k_row, keys, M, D, BLOCK_D)
                v = load_rows_or_last(vs[i], v_row, keys, M, D, BLOCK_D)
            top, total, acc = absorb(qs[i], k, v, bias, score_scale, tops[i], totals[i], accs[i], EXPANDED)
            new_tops, new_totals, new_accs = new_tops + (top,), new_totals + (total,), new_accs + (acc,)
        tops, totals, accs = new_tops, new_totals, new_accs
    for i in tl.static_range(IMAGES):
        out_i = out_ptr + (b + i) * out_step
        finish(out_i, out_row, lse_ptr, (b + i) * H + h, rows, N, tops[i], totals[i], accs[i], D, EXPANDED)
