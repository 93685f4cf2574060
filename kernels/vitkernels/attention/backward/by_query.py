"""dQ of bias_attention (and of gated_attention): the passes in which queries stand still; see plan.py.

Where one tile holds all keys (CMT: 49), a program owns a tile of queries of one head, keeps bias and dBias in registers
and walks through a slice of the images. Elsewhere it owns the queries of one image and walks through its keys, and can
leave dS behind for dBias. Both make delta, which the other passes read.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention.blocks import last_tile, rest_block, row_stages
from vitkernels.attention.tiles import (
    aligned,
    load_bias,
    load_bias_inside,
    load_lse,
    load_rows_or_last,
    lse_step,
    row_step,
    softmax_weights,
    store_rows,
    store_scores,
)
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.constants import OUTSIDE


@triton.jit
def _absorb_keys(
    q, do, lse, delta, dq, k_ptr, k_row, v_ptr, v_row, bias, keys, n_keys, score_scale, MASKED: tl.constexpr,
    EXPANDED: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Adds dS K of a tile of keys to dq [R, BLOCK_D], short of scale; also that dS [R, K]."""
    k = load_rows_or_last(k_ptr, k_row, keys, n_keys, D, q.shape[1])
    v = load_rows_or_last(v_ptr, v_row, keys, n_keys, D, q.shape[1])
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * score_scale
    s += bias
    if MASKED:
        s = tl.where(keys[None, :] < n_keys, s, OUTSIDE)
    dp = tl.dot(do, tl.trans(v), input_precision="tf32x3")
    ds = softmax_weights(s, lse, EXPANDED) * (dp - delta[:, None])
    return tl.dot(ds.to(q.dtype), k, dq, input_precision="tf32x3"), ds


@triton.jit
def _bwd_query_kernel(
    dq_ptr,  # [B, H, N, D]
    dbias_ptr,  # [slices, H, N, M] fp32, or None when the bias needs no gradient
    delta_ptr,  # [B, H, N] fp32
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
    IMAGES,  # images of one slice
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
    tiles = tl.cdiv(N, BLOCK_N)
    h = (pid // tiles) % H
    part = pid // (tiles * H)
    rows = pid % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    h64 = h.to(tl.int64)
    bias_ptr += h64 * bias_stride_h
    q_ptr += h64 * aligned(q_stride_h, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN)
    do_ptr += h64 * aligned(do_stride_h, ALIGN)
    dq_ptr += h64 * aligned(dq_stride_h, ALIGN)
    k_row, v_row, dq_row = aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN), aligned(dq_stride_n, ALIGN)
    q_step, do_step, out_step = aligned(q_stride_b, ALIGN), aligned(do_stride_b, ALIGN), aligned(out_stride_b, ALIGN)
    q_row, do_row, out_row = aligned(q_stride_n, ALIGN), aligned(do_stride_n, ALIGN), aligned(out_stride_n, ALIGN)
    if dbias_ptr is not None:
        dbias_ptr += (tl.cast(part, tl.int64) * H + h) * N * M
    keys = tl.arange(0, BLOCK_M)
    bias = load_bias(bias_ptr, row_step(bias_stride_n, ALIGN), rows, N, keys, M, EXPANDED)
    dbias = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for b in range(part * IMAGES, min(part * IMAGES + IMAGES, B)):
        b64 = tl.cast(b, tl.int64)
        image_head = b64 * H + h
        at, at_lse = image_head * N + rows, image_head * lse_step(N, EXPANDED) + rows
        q = load_rows_or_last(q_ptr + b64 * q_step, q_row, rows, N, D, BLOCK_D)
        do = load_rows_or_last(do_ptr + b64 * do_step, do_row, rows, N, D, BLOCK_D)
        out = load_rows_or_last(out_ptr + b64 * out_step, out_row, rows, N, D, BLOCK_D)
        lse = load_lse(lse_ptr, at_lse, rows, N, EXPANDED)
        delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
        tl.store(delta_ptr + at, delta, mask=rows < N)
        dq, ds = _absorb_keys(
            q, do, lse, delta, tl.zeros([BLOCK_N, BLOCK_D], tl.float32), k_ptr + b64 * aligned(k_stride_b, ALIGN),
            k_row, v_ptr + b64 * aligned(v_stride_b, ALIGN), v_row, bias, keys, M, score_scale, False, EXPANDED, D,
        )  # fmt: skip
        dbias += ds
        store_rows(dq_ptr + b64 * aligned(dq_stride_b, ALIGN), dq_row, dq * scale, rows, N, D, BLOCK_D)
    if dbias_ptr is not None:
        store_scores(dbias_ptr, dbias, rows, N, keys, M)


@triton.jit
def _bwd_rows_kernel(
    dq_ptr,  # [B, H, N, D]
    ds_ptr,  # [B, H, N, DS_ROW], or None
    delta_ptr,  # [B, H, N] fp32, given where GATED
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
    DS_ROW,
    scale,
    score_scale,
    GATED: tl.constexpr,
    EXPANDED: tl.constexpr,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LAST: tl.constexpr,  # queries of the last tile
    REST: tl.constexpr,  # keys of a last, shorter block; 0 without one
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    tile = pid % tiles
    h, b = (pid // tiles) % H, pid // (tiles * H)
    h64, b64 = h.to(tl.int64), b.to(tl.int64)
    bias_ptr += h64 * bias_stride_h
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b64 * aligned(q_stride_b, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b64 * aligned(k_stride_b, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b64 * aligned(v_stride_b, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN) + b64 * aligned(out_stride_b, ALIGN)
    do_ptr += h64 * aligned(do_stride_h, ALIGN) + b64 * aligned(do_stride_b, ALIGN)
    dq_ptr += h64 * aligned(dq_stride_h, ALIGN) + b64 * aligned(dq_stride_b, ALIGN)
    lse_ptr += (b64 * H + h) * lse_step(N, EXPANDED)
    delta_ptr += (b64 * H + h) * N
    k_row, v_row, dq_row = aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN), aligned(dq_stride_n, ALIGN)
    q_row, do_row, out_row = aligned(q_stride_n, ALIGN), aligned(do_stride_n, ALIGN), aligned(out_stride_n, ALIGN)
    bias_row = row_step(bias_stride_n, ALIGN)
    if ds_ptr is not None:
        ds_ptr += (b64 * H + h) * N * DS_ROW
    if LAST < BLOCK_N and tile == tiles - 1:
        _rows(
            dq_ptr, dq_row, ds_ptr, DS_ROW, delta_ptr, q_ptr, q_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_row,
            out_ptr, out_row, do_ptr, do_row, lse_ptr, tile * BLOCK_N + tl.arange(0, LAST), N, M, scale, score_scale,
            GATED, EXPANDED, D, BLOCK_D, BLOCK_M, REST,
        )  # fmt: skip
    else:
        _rows(
            dq_ptr, dq_row, ds_ptr, DS_ROW, delta_ptr, q_ptr, q_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_row,
            out_ptr, out_row, do_ptr, do_row, lse_ptr, tile * BLOCK_N + tl.arange(0, BLOCK_N), N, M, scale, score_scale,
            GATED, EXPANDED, D, BLOCK_D, BLOCK_M, REST,
        )  # fmt: skip


@triton.jit
def _rows(
    dq_ptr, dq_row, ds_ptr, ds_row, delta_ptr, q_ptr, q_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_row, out_ptr,
    out_row, do_ptr, do_row, lse_ptr, rows, N, M, scale, score_scale, GATED: tl.constexpr, EXPANDED: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """dQ of a tile of rows [R] of one image and head."""
    q = load_rows_or_last(q_ptr, q_row, rows, N, D, BLOCK_D)
    do = load_rows_or_last(do_ptr, do_row, rows, N, D, BLOCK_D)
    row_or_last = tl.minimum(rows, N - 1)
    lse = load_lse(lse_ptr, row_or_last, row_or_last, N, EXPANDED)
    if GATED:
        delta = tl.load(delta_ptr + rows, mask=rows < N, other=0.0)
    else:
        out = load_rows_or_last(out_ptr, out_row, rows, N, D, BLOCK_D)
        delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
        tl.store(delta_ptr + rows, delta, mask=rows < N)
    dq = tl.zeros([rows.shape[0], BLOCK_D], tl.float32)
    whole = M // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        bias = 0.0 if GATED else load_bias_inside(bias_ptr, bias_row, rows, N, keys, EXPANDED)
        dq, ds = _absorb_keys(
            q, do, lse, delta, dq, k_ptr, k_row, v_ptr, v_row, bias, keys, M, score_scale, False, EXPANDED, D
        )
        if ds_ptr is not None:
            store_scores(ds_ptr, ds.to(ds_ptr.dtype.element_ty), rows, N, keys, ds_row)
    if REST > 0:
        keys = whole + tl.arange(0, REST)
        bias = 0.0 if GATED else load_bias(bias_ptr, bias_row, rows, N, keys, M, EXPANDED)
        dq, ds = _absorb_keys(
            q, do, lse, delta, dq, k_ptr, k_row, v_ptr, v_row, bias, keys, M, score_scale, GATED, EXPANDED, D
        )
        if ds_ptr is not None:
            store_scores(ds_ptr, ds.to(ds_ptr.dtype.element_ty), rows, N, keys, ds_row)
    store_rows(dq_ptr, dq_row, dq * scale, rows, N, D, BLOCK_D)


def query_calls(
    dq: Tensor, dbias_parts: Tensor | None, shared: dict[str, Any], images: int, block_n: int, block_m: int
) -> list[Call]:
    """The launch that fills dq, delta and dbias_parts, with all keys in one tile of block_m."""
    B, H, N, _ = dq.shape
    args = shared | _dq_args(dq) | {
        "dbias_ptr": dbias_parts, "IMAGES": images, "BLOCK_N": block_n, "BLOCK_M": block_m,
    }  # fmt: skip
    return [Call(kernel=_bwd_query_kernel, args=args, grid=cdiv(N, block_n) * H * cdiv(B, images), products=3,
                 pass_name="bwd_query", num_stages=1, scores=B * H * N * shared["M"])]  # fmt: skip


def rows_calls(dq: Tensor, ds: Tensor | None, shared: dict[str, Any], block_n: int, block_m: int) -> list[Call]:
    """The launch that fills dq, ds [B, H, N, >= M] where given, and (unless gated) delta; keys in tiles of block_m.

    Four programs to a multiprocessor, whose copies run ahead, beat larger tiles that read keys less often.
    """
    B, H, N, _ = dq.shape
    args = shared | _dq_args(dq) | {
        "ds_ptr": ds, "DS_ROW": 0 if ds is None else ds.shape[3],
        "BLOCK_N": block_n, "BLOCK_M": block_m, "LAST": last_tile(N, block_n), "REST": rest_block(shared["M"], block_m),
    }  # fmt: skip
    return [Call(kernel=_bwd_rows_kernel, args=args, grid=cdiv(N, block_n) * H * B, products=3,
                 pass_name="bwd_query", num_stages=row_stages(dq), scores=B * H * N * shared["M"])]  # fmt: skip


def _dq_args(dq: Tensor) -> dict[str, Any]:
    return {
        "dq_ptr": dq, "dq_stride_b": dq.stride(0), "dq_stride_h": dq.stride(1), "dq_stride_n": dq.stride(2),
    }  # fmt: skip
