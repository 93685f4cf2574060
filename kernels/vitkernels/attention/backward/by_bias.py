"""dBias of bias_attention, summed over images, where scores do not fit one tile; see plan.py.

A program owns a tile of queries and keys of one head, holds its bias and dBias in registers and walks through a slice
of the images: for each image two matrix products (the scores, and dP = dO v^T) and one exp2 a score. Gated attention
wants the sum of dP alone: one product an image, which the matrix unit adds to the accumulator by itself.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention.blocks import backward_stages, has_tail, last_tile, tall_tile
from vitkernels.attention.tiles import (
    aligned,
    load_bias,
    load_lse,
    load_rows_or_last,
    lse_step,
    row_step,
    softmax_weights,
    store_scores,
)
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.device import reads_results_from_tensor_memory


@triton.jit
def _absorb_image(q, do, lse, delta, k_ptr, k_row, v_ptr, v_row, bias, dbias, keys, M, score_scale, GATED: tl.constexpr,
                  EXPANDED: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """Adds the dS (gated: dP) of one image to dbias [R, K]."""
    v = load_rows_or_last(v_ptr, v_row, keys, M, D, do.shape[1])
    if GATED:
        return tl.dot(do, tl.trans(v), dbias, input_precision="tf32x3")
    k = load_rows_or_last(k_ptr, k_row, keys, M, D, q.shape[1])
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * score_scale + bias
    p = softmax_weights(s, lse, EXPANDED)
    return dbias + p * (tl.dot(do, tl.trans(v), input_precision="tf32x3") - delta[:, None])


@triton.jit
def _tile(
    dbias_ptr, lse_ptr, delta_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, do_ptr, do_step,
    do_row, bias_ptr, bias_row, rows, first_key, b_first, b_end, h, H, N, M, score_scale, GATED: tl.constexpr,
    EXPANDED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, KEYS_0: tl.constexpr, KEYS_1: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = rows.shape[0]
    keys_0 = first_key + tl.arange(0, KEYS_0)
    dbias_0 = tl.zeros([R, KEYS_0], tl.float32)
    bias_0 = 0.0 if GATED else load_bias(bias_ptr, bias_row, rows, N, keys_0, M, EXPANDED)
    if KEYS_1 > 0:
        keys_1 = first_key + KEYS_0 + tl.arange(0, KEYS_1)
        dbias_1 = tl.zeros([R, KEYS_1], tl.float32)
        bias_1 = 0.0 if GATED else load_bias(bias_ptr, bias_row, rows, N, keys_1, M, EXPANDED)
    for b in range(b_first, b_end):
        b64 = tl.cast(b, tl.int64)
        image_head = b64 * H + h
        at, at_lse = image_head * N + rows, image_head * lse_step(N, EXPANDED) + rows
        q = load_rows_or_last(q_ptr + b64 * q_step, q_row, rows, N, D, BLOCK_D)
        do = load_rows_or_last(do_ptr + b64 * do_step, do_row, rows, N, D, BLOCK_D)
        lse = load_lse(lse_ptr, at_lse, rows, N, EXPANDED)
        delta = tl.load(delta_ptr + at, mask=rows < N, other=0.0)
        k_b, v_b = k_ptr + b64 * k_step, v_ptr + b64 * v_step
        dbias_0 = _absorb_image(
            q, do, lse, delta, k_b, k_row, v_b, v_row, bias_0, dbias_0, keys_0, M, score_scale, GATED, EXPANDED, D
        )
        if KEYS_1 > 0:
            dbias_1 = _absorb_image(
                q, do, lse, delta, k_b, k_row, v_b, v_row, bias_1, dbias_1, keys_1, M, score_scale, GATED, EXPANDED, D
            )
    store_scores(dbias_ptr, dbias_0, rows, N, keys_0, M)
    if KEYS_1 > 0:
        store_scores(dbias_ptr, dbias_1, rows, N, keys_1, M)


@triton.jit
def _bwd_bias_kernel(
    dbias_ptr,  # [slices, H, N, M] fp32
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, M, D]
    v_ptr,  # [B, H, M, D]
    bias_ptr,  # [H, N, M]
    do_ptr,  # [B, H, N, D]
    lse_ptr,  # as `store_lse` fills it
    delta_ptr,  # [B, H, N] fp32
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_m,
    v_stride_b,
    v_stride_h,
    v_stride_m,
    do_stride_b,
    do_stride_h,
    do_stride_n,
    bias_stride_h,
    bias_stride_n,
    B,
    H,
    N,
    M,
    IMAGES,  # images of one slice
    chunks,  # of keys
    score_scale,
    GATED: tl.constexpr,
    EXPANDED: tl.constexpr,
    LAST: tl.constexpr,  # queries of the last tile
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEYS_0: tl.constexpr,
    KEYS_1: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    tile, chunk = pid % tiles, pid // tiles % chunks
    h, part = pid // (tiles * chunks) % H, pid // (tiles * chunks * H)
    h64 = tl.cast(h, tl.int64)
    b_first, first_key = part * IMAGES, chunk * (KEYS_0 + KEYS_1)
    b_end = min(b_first + IMAGES, B)
    bias_ptr += h64 * bias_stride_h
    q_ptr += h64 * aligned(q_stride_h, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN)
    do_ptr += h64 * aligned(do_stride_h, ALIGN)
    dbias_ptr += (tl.cast(part, tl.int64) * H + h) * N * M
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    do_step, do_row = aligned(do_stride_b, ALIGN), aligned(do_stride_n, ALIGN)
    bias_row = row_step(bias_stride_n, ALIGN)
    if LAST < BLOCK_N and tile == tiles - 1:
        _tile(
            dbias_ptr, lse_ptr, delta_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, do_ptr,
            do_step, do_row, bias_ptr, bias_row, tile * BLOCK_N + tl.arange(0, LAST), first_key, b_first, b_end,
            h, H, N, M, score_scale, GATED, EXPANDED, D, BLOCK_D, KEYS_0, KEYS_1,
        )  # fmt: skip
    else:
        _tile(
            dbias_ptr, lse_ptr, delta_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, do_ptr,
            do_step, do_row, bias_ptr, bias_row, tile * BLOCK_N + tl.arange(0, BLOCK_N), first_key, b_first, b_end,
            h, H, N, M, score_scale, GATED, EXPANDED, D, BLOCK_D, KEYS_0, KEYS_1,
        )  # fmt: skip


def bias_tile(q: Tensor, block_n: int, block_m: int, n_keys: int, arch: int) -> tuple[int, int, int]:
    """Queries of a tile, its keys, and those of a second, narrower tile beside it (0 without one)."""
    N, D = q.shape[2:]
    narrow_rows = reads_results_from_tensor_memory(arch) and D % 16  # 128 of these spill in Triton 3.6
    pays = D > 32 or N % 128 == 0  # of narrow heads only without padding
    if block_n == 64 and pays and tall_tile(q, arch) and not has_tail(N, 64) and not narrow_rows:
        block_n = 128
    if D <= 32 and block_n < 128:  # four programs to a multiprocessor
        return block_n, min(block_m, 32), 0
    if block_m == 64 and n_keys % 48 == 0 and D <= 64:  # whole tiles
        return block_n, 32, 16
    # Rows that are no multiple of 32 bytes are loaded in narrow pieces, which takes registers: half as many keys.
    return block_n, 16 if D > 64 else block_m if D % 16 == 0 else block_m // 2, 0


def bias_calls(
    dbias_parts: Tensor, shared: dict[str, Any], images: int, block_n: int, block_m: int, arch: int
) -> list[Call]:
    """The launch that fills dbias_parts."""
    _, H, N, M = dbias_parts.shape
    B = shared["B"]
    block_n, keys_0, keys_1 = bias_tile(shared["q_ptr"], block_n, block_m, M, arch)
    chunks = cdiv(M, keys_0 + keys_1)
    args = shared | {
        "dbias_ptr": dbias_parts, "IMAGES": images, "chunks": chunks, "BLOCK_N": block_n, "KEYS_0": keys_0,
        "KEYS_1": keys_1, "LAST": last_tile(N, block_n),
    }  # fmt: skip
    return [Call(kernel=_bwd_bias_kernel, pass_name="bwd_bias", products=2, args=args,
                 grid=cdiv(N, block_n) * chunks * H * cdiv(B, images), scores=B * H * N * M,
                 num_stages=backward_stages(shared["q_ptr"], arch), num_warps=8 if block_n == 128 else 4)]  # fmt: skip
