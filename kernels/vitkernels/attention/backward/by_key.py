"""dK and dV of bias_attention (and of gated_attention): the pass in which keys stand still; see plan.py.

P and dS are made as [queries, keys] and transposed through shared memory for their products with dO and q. Scores made
as [keys, queries] would need no transposing, but then a thread holds scores of many queries, and needs the log-sum-exp
and delta of each in registers.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention.blocks import (
    PROGRAMS_WANTED,
    backward_stages,
    has_tail,
    last_tile,
    register_limit,
)
from vitkernels.attention.tiles import (
    aligned,
    load_bias,
    load_bias_inside,
    load_lse,
    load_rows,
    load_rows_or_last,
    lse_step,
    row_step,
    softmax_weights,
    store_rows,
)
from vitkernels.runtime.call import Call, cdiv, sum_parts_call
from vitkernels.runtime.constants import OUTSIDE
from vitkernels.runtime.device import reads_results_from_tensor_memory


@triton.jit
def _absorb_queries(
    k, v, dk, dv, q_ptr, q_row, do_ptr, do_row, lse_ptr, delta_ptr, bias, rows, n_rows, score_scale,
    GATED: tl.constexpr, EXPANDED: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Adds what a tile of queries [R] gives to dK / scale and dV [K, BLOCK_D]; makes the scores [R, K] again."""
    BLOCK_D: tl.constexpr = k.shape[1]
    if GATED:
        q = load_rows(q_ptr, q_row, rows, n_rows, D, BLOCK_D)
        do = load_rows(do_ptr, do_row, rows, n_rows, D, BLOCK_D)
    else:
        q = load_rows_or_last(q_ptr, q_row, rows, n_rows, D, BLOCK_D)
        do = load_rows_or_last(do_ptr, do_row, rows, n_rows, D, BLOCK_D)
    lse = load_lse(lse_ptr, rows, rows, n_rows, EXPANDED)
    bias = bias.to(tl.float32)
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * score_scale
    if not GATED:
        s += bias
    p = softmax_weights(s, lse, EXPANDED)
    weights = p + bias if GATED else p
    dv = tl.dot(tl.trans(weights.to(q.dtype)), do, dv, input_precision="tf32x3")
    delta = tl.load(delta_ptr + rows, mask=rows < n_rows, other=0.0)
    ds = p * (tl.dot(do, tl.trans(v), input_precision="tf32x3") - delta[:, None])
    return tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision="tf32x3"), dv


@triton.jit
def _bwd_key_kernel(
    dk_ptr,  # [B, H, M, D], or fp32 [spans, B, H, M, D]
    dv_ptr,  # as dk
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, M, D]
    v_ptr,  # [B, H, M, D]
    bias_ptr,  # [H, N, M]
    do_ptr,  # [B, H, N, D]
    lse_ptr,  # as `store_lse` fills it
    delta_ptr,  # [B, H, N] fp32
    dk_stride_s,
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
    do_stride_b,
    do_stride_h,
    do_stride_n,
    bias_stride_h,
    bias_stride_n,
    B,
    H,
    N,
    M,
    SPAN,  # queries of one program
    scale,
    score_scale,
    GATED: tl.constexpr,
    EXPANDED: tl.constexpr,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TAIL_N: tl.constexpr,  # the last tile has at most 16 queries
    LAST: tl.constexpr,  # keys of the last tile
    INSIDE: tl.constexpr,  # no tile but the last one reaches beyond M
    LAST_INSIDE: tl.constexpr,  # nor does the last one, beyond the padding of an expanded bias
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(M, BLOCK_M)
    tile = pid % tiles
    b = (pid // tiles) % B
    h = (pid // (tiles * B)) % H
    span = pid // (tiles * B * H)
    h64, b64 = h.to(tl.int64), b.to(tl.int64)
    bias_ptr += h64 * bias_stride_h
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b64 * aligned(k_stride_b, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b64 * aligned(v_stride_b, ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b64 * aligned(q_stride_b, ALIGN)
    do_ptr += h64 * aligned(do_stride_h, ALIGN) + b64 * aligned(do_stride_b, ALIGN)
    lse_ptr += (b64 * H + h) * lse_step(N, EXPANDED)
    delta_ptr += (b64 * H + h) * N
    q_row, do_row, dk_row = aligned(q_stride_n, ALIGN), aligned(do_stride_n, ALIGN), aligned(dk_stride_m, ALIGN)
    dk_at = span.to(tl.int64) * dk_stride_s + b64 * aligned(dk_stride_b, ALIGN) + h64 * aligned(dk_stride_h, ALIGN)
    dk_ptr += dk_at
    dv_ptr += dk_at
    k_row, v_row = aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    bias_row = row_step(bias_stride_n, ALIGN)
    first, end = span * SPAN, min(span * SPAN + SPAN, N)
    if LAST < BLOCK_M and tile == tiles - 1:
        _keys(
            dk_ptr, dv_ptr, dk_row, q_ptr, q_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_row, do_ptr, do_row,
            lse_ptr, delta_ptr, tile * BLOCK_M + tl.arange(0, LAST), first, end, N, M, scale, score_scale, GATED,
            EXPANDED, D, BLOCK_D, BLOCK_N, TAIL_N, LAST_INSIDE,
        )  # fmt: skip
    else:
        _keys(
            dk_ptr, dv_ptr, dk_row, q_ptr, q_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_row, do_ptr, do_row,
            lse_ptr, delta_ptr, tile * BLOCK_M + tl.arange(0, BLOCK_M), first, end, N, M, scale, score_scale, GATED,
            EXPANDED, D, BLOCK_D, BLOCK_N, TAIL_N, INSIDE,
        )  # fmt: skip


@triton.jit
def _keys(
    dk_ptr, dv_ptr, dk_row, q_ptr, q_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_row, do_ptr, do_row, lse_ptr,
    delta_ptr, keys, first, end, N, M, scale, score_scale, GATED: tl.constexpr, EXPANDED: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, TAIL_N: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys [K] of one image and head, from the queries first to end."""
    k = load_rows_or_last(k_ptr, k_row, keys, M, D, BLOCK_D)
    v = load_rows_or_last(v_ptr, v_row, keys, M, D, BLOCK_D)
    dk = tl.zeros([keys.shape[0], BLOCK_D], tl.float32)
    dv = tl.zeros([keys.shape[0], BLOCK_D], tl.float32)
    whole = min(end, N // BLOCK_N * BLOCK_N) if TAIL_N else end
    for start in range(first, whole, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        if INSIDE:
            bias = load_bias_inside(bias_ptr, bias_row, rows, N, keys, EXPANDED)
        else:
            bias = load_bias(bias_ptr, bias_row, rows, N, keys, M, EXPANDED, 0.0 if GATED else OUTSIDE)
        dk, dv = _absorb_queries(
            k, v, dk, dv, q_ptr, q_row, do_ptr, do_row, lse_ptr, delta_ptr, bias, rows, N, score_scale, GATED,
            EXPANDED, D,
        )  # fmt: skip
    if TAIL_N:  # noqa: SIM102 - a constexpr by itself leaves the branch out
        if whole < end:
            rows = whole + tl.arange(0, 16)
            bias = load_bias(bias_ptr, bias_row, rows, N, keys, M, EXPANDED, 0.0 if GATED else OUTSIDE)
            dk, dv = _absorb_queries(
                k, v, dk, dv, q_ptr, q_row, do_ptr, do_row, lse_ptr, delta_ptr, bias, rows, N, score_scale, GATED,
            EXPANDED, D,
            )  # fmt: skip
    store_rows(dk_ptr, dk_row, dk * scale, keys, M, D, BLOCK_D)
    store_rows(dv_ptr, dk_row, dv, keys, M, D, BLOCK_D)


def key_calls(dk: Tensor, dv: Tensor, shared: dict[str, Any], block_n: int, block_m: int, arch: int) -> list[Call]:
    """The launches that fill dk and dv (token-major); shared holds the arguments that both passes take."""
    B, H, M, D = dk.shape
    N, tiles, last = shared["N"], cdiv(M, block_m), last_tile(M, block_m)
    spans = max(1, min(cdiv(PROGRAMS_WANTED, B * H * tiles), cdiv(N, 8 * block_n))) if B else 1
    span = cdiv(cdiv(N, spans), block_n) * block_n
    spans = cdiv(N, span)
    dk_parts, dv_parts = dk, dv
    if spans > 1:
        dk_parts, dv_parts = (dk.new_empty((spans, B, M, H, D), dtype=torch.float32).transpose(2, 3) for _ in range(2))
    # Code for a last tile of another size needs registers of its own. None are left where the bias is dense, which
    # takes pointers, and products come out of tensor memory (sm_100).
    fits_tail = shared["EXPANDED"] or not reads_results_from_tensor_memory(arch)
    strides = (0, *dk.stride()) if spans == 1 else dk_parts.stride()
    stages = backward_stages(dk, arch) if span > block_n else 1  # of a single tile nothing is copied ahead
    key = Call(
        kernel=_bwd_key_kernel, pass_name="bwd_key", num_stages=stages, products=4,
        scores=B * H * N * M, grid=tiles * B * H * spans,
        options=register_limit(D, shared["bias_ptr"], shared["EXPANDED"], arch),
        args=shared | {
            "dk_ptr": dk_parts, "dv_ptr": dv_parts, "SPAN": span, "BLOCK_N": block_n, "BLOCK_M": block_m,
            "dk_stride_s": strides[0], "dk_stride_b": strides[1], "dk_stride_h": strides[2], "dk_stride_m": strides[3],
            "TAIL_N": fits_tail and has_tail(N, block_n), "LAST": last,
            "INSIDE": fits_tail and (M % block_m == 0 or last < block_m),
            "LAST_INSIDE": bool(shared["EXPANDED"]) and cdiv(M, 16) * 16 % block_m == last % block_m,
        },
    )  # fmt: skip
    if spans == 1:
        return [key]
    return [key, sum_parts_call(dk, dk_parts, "bwd_sum_dk"), sum_parts_call(dv, dv_parts, "bwd_sum_dv")]
