"""dBias of bias_attention after queries_held.py, from the parts of lse and delta that it left; at most 256 queries.

A program owns a tile of one head's scores, holds its bias and dBias in registers and walks through a slice of the
images: two products, one exp2. The fp32 lanes are what this pass waits for, so the matrix unit subtracts lse and delta:
parts times a matrix of -256 or -1 (`_minus`) is what the products of the scores and of dP are added to. 196 queries and
keys are nine tiles of 64 x 64, one of 256 x 16 for the last keys and one of 16 x 256, transposed, for the last queries.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention.backward.queries_held import alignment
from vitkernels.attention.tiles import aligned, load_rows_or_last
from vitkernels.runtime.call import Call, cdiv


@triton.jit
def _minus(R: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, FACTOR: tl.constexpr, KIND: tl.constexpr):
    """[R, 16]: -FACTOR in every other column from FIRST to LAST, else 0; times parts it subtracts those columns."""
    column = tl.arange(0, 16)
    picked = (column >= FIRST) & (column <= LAST) & (column % 2 == FIRST % 2)
    return (tl.zeros([R, 16], tl.float32) + tl.where(picked, -FACTOR, 0.0)[None, :]).to(KIND)


@triton.jit
def _tile(
    dbias_ptr, parts_ptr, parts_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, do_ptr,
    do_step, do_row, bias_ptr, bias_row, rows, end_row, keys, b_first, b_end, N, M, score_scale,
    TRANSPOSED: tl.constexpr, INSIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dBias of rows [R] before end_row and keys [K], as a tile [R, K] or TRANSPOSED [K, R].

    INSIDE: no row is beyond N and no key beyond M.
    """
    R: tl.constexpr = keys.shape[0] if TRANSPOSED else rows.shape[0]
    K: tl.constexpr = rows.shape[0] if TRANSPOSED else keys.shape[0]
    KIND: tl.constexpr = q_ptr.dtype.element_ty
    rows_2d = rows[None, :] if TRANSPOSED else rows[:, None]
    keys_2d = keys[:, None] if TRANSPOSED else keys[None, :]
    if INSIDE:
        bias = tl.load(bias_ptr + rows_2d * bias_row + keys_2d)
    else:
        bias = tl.load(bias_ptr + tl.minimum(rows_2d, N - 1) * bias_row + tl.minimum(keys_2d, M - 1))
    minus_lse = _minus(R if TRANSPOSED else K, 0, 4, 256.0, KIND)
    minus_delta = _minus(R if TRANSPOSED else K, 1, 3, 1.0, KIND)
    dbias = tl.zeros([R, K], tl.float32)
    for b in range(b_first, b_end):
        b64 = tl.cast(b, tl.int64)
        q = load_rows_or_last(q_ptr + b64 * q_step, q_row, rows, N, D, BLOCK_D)
        do = load_rows_or_last(do_ptr + b64 * do_step, do_row, rows, N, D, BLOCK_D)
        k = load_rows_or_last(k_ptr + b64 * k_step, k_row, keys, M, D, BLOCK_D)
        v = load_rows_or_last(v_ptr + b64 * v_step, v_row, keys, M, D, BLOCK_D)
        parts = load_rows_or_last(parts_ptr + b64 * parts_step, 8, rows, N, 8, 16)
        if TRANSPOSED:
            s = tl.dot(k, tl.trans(q), tl.dot(minus_lse, tl.trans(parts)))
            dp = tl.dot(v, tl.trans(do), tl.dot(minus_delta, tl.trans(parts)))
        else:
            s = tl.dot(q, tl.trans(k), tl.dot(parts, tl.trans(minus_lse)))
            dp = tl.dot(do, tl.trans(v), tl.dot(parts, tl.trans(minus_delta)))
        dbias += tl.math.exp2(s * score_scale + bias) * dp
    if INSIDE:
        tl.store(dbias_ptr + rows_2d * M + keys_2d, dbias)
    else:
        tl.store(dbias_ptr + rows_2d * M + keys_2d, dbias, mask=(rows_2d < end_row) & (keys_2d < M))


@triton.jit
def _bwd_whole_bias_kernel(
    dbias_ptr,  # [slices, H, N, M] fp32
    parts_ptr,  # [B, H, N, 8] from queries_held.py
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, M, D]
    v_ptr,  # [B, H, M, D]
    bias_ptr,  # [H, N, M padded to 16], in units of log2
    do_ptr,  # [B, H, N, D]
    q_stride_b,
    q_stride_h,
    q_stride_n: tl.constexpr,
    k_stride_b,
    k_stride_h,
    k_stride_m: tl.constexpr,
    v_stride_b,
    v_stride_h,
    v_stride_m: tl.constexpr,
    do_stride_b,
    do_stride_h,
    do_stride_n: tl.constexpr,
    bias_stride_h,
    bias_stride_n: tl.constexpr,
    B,
    H,
    N: tl.constexpr,
    M: tl.constexpr,
    IMAGES,  # images of one slice
    score_scale,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILES_N: tl.constexpr,  # of 64 queries
    TILES_M: tl.constexpr,  # of 64 keys
    REST_ROWS: tl.constexpr,  # queries of a last, narrow tile; 0 without one
    REST_KEYS: tl.constexpr,  # keys of a last, narrow tile
    ALL_ROWS: tl.constexpr,  # power of two of all queries
    ALL_KEYS: tl.constexpr,
):
    TILES: tl.constexpr = TILES_N * TILES_M
    INSIDE: tl.constexpr = TILES_N * 64 <= N and TILES_M * 64 <= M
    PROGRAMS: tl.constexpr = TILES + (REST_ROWS > 0) + (REST_KEYS > 0)
    pid = tl.program_id(0)
    tile, h = pid % PROGRAMS, pid // PROGRAMS % H
    part = pid // (PROGRAMS * H)
    h64 = tl.cast(h, tl.int64)
    b_first = part * IMAGES
    b_end = min(b_first + IMAGES, B)
    bias_ptr += h64 * bias_stride_h
    q_ptr += h64 * aligned(q_stride_h, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN)
    do_ptr += h64 * aligned(do_stride_h, ALIGN)
    parts_ptr += h64 * (N * 8)
    dbias_ptr += (tl.cast(part, tl.int64) * H + h) * N * M
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    do_step, do_row = aligned(do_stride_b, ALIGN), aligned(do_stride_n, ALIGN)
    parts_step = H * N * 8
    if tile < TILES:
        _tile(
            dbias_ptr, parts_ptr, parts_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, do_ptr,
            do_step, do_row, bias_ptr, bias_stride_n, tile // TILES_M * 64 + tl.arange(0, 64), N,
            tile % TILES_M * 64 + tl.arange(0, 64), b_first, b_end, N, M, score_scale, False, INSIDE, D, BLOCK_D,
        )  # fmt: skip
    elif REST_ROWS > 0 and tile == TILES:
        _tile(
            dbias_ptr, parts_ptr, parts_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, do_ptr,
            do_step, do_row, bias_ptr, bias_stride_n, TILES_N * 64 + tl.arange(0, REST_ROWS), N,
            tl.arange(0, ALL_KEYS), b_first, b_end, N, M, score_scale, True, False, D, BLOCK_D,
        )  # fmt: skip
    elif REST_KEYS > 0:
        _tile(
            dbias_ptr, parts_ptr, parts_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, do_ptr,
            do_step, do_row, bias_ptr, bias_stride_n, tl.arange(0, ALL_ROWS), TILES_N * 64 if REST_ROWS else N,
            TILES_M * 64 + tl.arange(0, REST_KEYS), b_first, b_end, N, M, score_scale, False, False, D, BLOCK_D,
        )  # fmt: skip


def _narrow(size: int) -> int:
    """Width of the tile that takes what tiles of 64 leave, where that is little: 8, 16 or 0."""
    rest = size % 64 if size > 64 else 0
    return 0 if rest > 16 else cdiv(rest, 8) * 8


def whole_bias_calls(dbias_parts: Tensor, parts: Tensor, shared: dict[str, Any], images: int) -> list[Call]:
    """The launch that fills dbias_parts."""
    _, H, N, M = dbias_parts.shape
    B = shared["B"]
    rest_rows, rest_keys = _narrow(N), _narrow(M)
    tiles = cdiv(N, 64) - (rest_rows > 0), cdiv(M, 64) - (rest_keys > 0)
    programs = tiles[0] * tiles[1] + (rest_rows > 0) + (rest_keys > 0)
    args = {name: value for name, value in shared.items() if name not in ("EXPANDED", "lse_ptr", "delta_ptr")} | {
        "dbias_ptr": dbias_parts, "parts_ptr": parts, "IMAGES": images,
        "ALIGN": alignment(shared), "TILES_N": tiles[0], "TILES_M": tiles[1],
        "REST_ROWS": rest_rows, "REST_KEYS": rest_keys, "ALL_ROWS": triton.next_power_of_2(N),
        "ALL_KEYS": triton.next_power_of_2(M),
    }  # fmt: skip
    return [Call(kernel=_bwd_whole_bias_kernel, pass_name="bwd_bias", products=2, num_stages=3, num_warps=4,
                 grid=programs * H * cdiv(B, images), scores=B * H * N * M, args=args)]  # fmt: skip
