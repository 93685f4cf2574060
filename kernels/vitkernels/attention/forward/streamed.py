"""Forward for any number of keys: blocks of keys are copied to shared memory while earlier ones are multiplied.

A program owns a tile of queries of one head and of a few images, which share each block of the bias. Where exponentials
of the scores as they are turn out not to do, it takes its images once more, one by one, with a running maximum.
"""

# ruff: noqa: RUF005 - Triton joins tuples by + only
# Parameters of kernels are Triton values, which have no Python types; tuples change their length as they grow.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.attention.forward.softmax import absorb, absorb_as_is, all_in_range, finish, nothing_yet
from vitkernels.attention.tiles import (
    aligned,
    load_bias_inside,
    load_bias_or_last,
    load_rows_inside,
    load_rows_or_last,
)
from vitkernels.runtime.constants import LOG2E


@triton.jit
def _pass_keys(
    q,  # (pointer, stride of images, of rows), as are k and v
    k,
    v,
    bias,  # (pointer, stride of rows, keys)
    first,  # image
    rows,
    N,
    M,
    score_scale,
    IMAGES: tl.constexpr,
    AS_IS: tl.constexpr,
    EXPANDED: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    WHOLE: tl.constexpr,
    BIAS_WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All keys of a few images, for their rows: (tops, totals, accs) of `softmax`, tops being zero AS_IS."""
    qs, tops, totals, accs = (), (), (), ()
    for i in tl.static_range(IMAGES):
        qs = qs + (load_rows_or_last(q[0] + (first + i) * q[1], q[2], rows, N, D, BLOCK_D),)
        top, total, acc = nothing_yet(rows.shape[0], BLOCK_D)
        if AS_IS:
            top = tl.zeros_like(top)
        tops, totals, accs = tops + (top,), totals + (total,), accs + (acc,)
    if AS_IS and not EXPANDED:
        score_scale *= LOG2E
    for start in tl.range(0, M, BLOCK_M, num_stages=STAGES):
        keys = start + tl.arange(0, BLOCK_M)
        if BIAS_WHOLE:
            added = load_bias_inside(bias[0], bias[1], rows, N, keys, EXPANDED)
        else:
            added = load_bias_or_last(bias[0], bias[1], rows, N, keys, bias[2], EXPANDED)
        if AS_IS and not EXPANDED:
            added *= LOG2E
        new_tops, new_totals, new_accs = (), (), ()
        for i in tl.static_range(IMAGES):
            if WHOLE:
                k_i = load_rows_inside(k[0] + (first + i) * k[1], k[2], keys, D, BLOCK_D)
                v_i = load_rows_inside(v[0] + (first + i) * v[1], v[2], keys, D, BLOCK_D)
            else:
                k_i = load_rows_or_last(k[0] + (first + i) * k[1], k[2], keys, M, D, BLOCK_D)
                v_i = load_rows_or_last(v[0] + (first + i) * v[1], v[2], keys, M, D, BLOCK_D)
            top = tops[i]
            if AS_IS:
                total, acc = absorb_as_is(qs[i], k_i, v_i, added, score_scale, totals[i], accs[i])
            else:
                top, total, acc = absorb(qs[i], k_i, v_i, added, score_scale, top, totals[i], accs[i], EXPANDED)
            new_tops, new_totals, new_accs = new_tops + (top,), new_totals + (total,), new_accs + (acc,)
        tops, totals, accs = new_tops, new_totals, new_accs
    return tops, totals, accs


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
    bias_row, bias_keys = aligned(bias_stride_n, BIAS_ALIGN), aligned(M, BIAS_ALIGN)
    out_step, out_row = aligned(out_stride_b, ALIGN), aligned(out_stride_n, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN)
    q = (q_ptr, aligned(q_stride_b, ALIGN), aligned(q_stride_n, ALIGN))
    k = (k_ptr, aligned(k_stride_b, ALIGN), aligned(k_stride_m, ALIGN))
    v = (v_ptr, aligned(v_stride_b, ALIGN), aligned(v_stride_m, ALIGN))
    bias = (bias_ptr + h64 * aligned(bias_stride_h, BIAS_ALIGN), bias_row, bias_keys)

    # fp16 ends at 2^16, and wide heads lack the registers. No function of Triton's: 3.6 makes a tensor of its result.
    as_is: tl.constexpr = q_ptr.dtype.element_ty != tl.float16 and D <= 64
    tops, totals, accs = _pass_keys(
        q, k, v, bias, b, rows, N, M, score_scale, IMAGES, as_is, EXPANDED, D, BLOCK_D, BLOCK_M, WHOLE, BIAS_WHOLE,
        STAGES,
    )  # fmt: skip
    if all_in_range(totals, as_is):
        for i in tl.static_range(IMAGES):
            out_i = out_ptr + (b + i) * out_step
            finish(out_i, out_row, lse_ptr, (b + i) * H + h, rows, N, tops[i], totals[i], accs[i], D, EXPANDED)
    else:
        for image in tl.range(b, b + IMAGES):
            top, total, acc = _pass_keys(
                q, k, v, bias, image, rows, N, M, score_scale, 1, False, EXPANDED, D, BLOCK_D, BLOCK_M, WHOLE,
                BIAS_WHOLE, 1,
            )  # fmt: skip
            out_i = out_ptr + image * out_step
            finish(out_i, out_row, lse_ptr, image * H + h, rows, N, top[0], total[0], acc[0], D, EXPANDED)
