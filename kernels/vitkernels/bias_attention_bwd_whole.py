"""dQ, dK and dV of bias_attention in one pass, where a program holds all queries of an image and head.

Queries and their gradients stay on chip while the program walks through the keys: scores are computed once, where
bias_attention_bwd_query.py and bias_attention_bwd_key.py compute them once each. For 65 to 256 queries of up to 32
channels; beyond, dQ leaves no registers. delta is made here, for the pass over the bias.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vitkernels import _common
from vitkernels._common import (
    Call,
    aligned,
    load_bias,
    load_bias_inside,
    load_rows_or_last,
    reads_operands_from_registers,
    reads_results_from_tensor_memory,
    rest_block,
    store_rows,
)


@triton.jit
def _load_queries(
    q_ptr, q_row, do_ptr, do_row, out_ptr, out_row, lse_ptr, delta_ptr, rows, N, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """q and do [R, BLOCK_D], lse and delta [R] of some rows; stores delta."""
    q = load_rows_or_last(q_ptr, q_row, rows, N, D, BLOCK_D)
    do = load_rows_or_last(do_ptr, do_row, rows, N, D, BLOCK_D)
    out = load_rows_or_last(out_ptr, out_row, rows, N, D, BLOCK_D)
    lse = tl.load(lse_ptr + rows, mask=rows < N, other=1.0e30)  # rows beyond N weigh nothing
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + rows, delta, mask=rows < N)
    return q, do, lse, delta


@triton.jit
def _absorb(q, do, lse, delta, dq, k, v, dk, dv, bias, scale_log2):
    """What a tile of scores adds to dQ and dK (both short of scale) and dV."""
    p = tl.math.exp2(tl.dot(q, tl.trans(k)) * scale_log2 + bias - lse[:, None])
    dv = tl.dot(tl.trans(p.to(q.dtype)), do, dv)
    ds = (p * (tl.dot(do, tl.trans(v)) - delta[:, None])).to(q.dtype)
    return tl.dot(ds, k, dq), tl.dot(tl.trans(ds), q, dk), dv


@triton.jit
def _keys(
    q_0, do_0, lse_0, delta_0, dq_0, rows_0, q_1, do_1, lse_1, delta_1, dq_1, rows_1, dk_ptr, dv_ptr, dk_row, k_ptr,
    k_row, v_ptr, v_row, bias_ptr, bias_row, keys, N, M, scale, scale_log2, INSIDE: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS_1: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys, from all queries, and what it adds to dQ."""
    k = load_rows_or_last(k_ptr, k_row, keys, M, D, BLOCK_D)
    v = load_rows_or_last(v_ptr, v_row, keys, M, D, BLOCK_D)
    dk = tl.zeros([keys.shape[0], BLOCK_D], tl.float32)
    dv = tl.zeros([keys.shape[0], BLOCK_D], tl.float32)
    if INSIDE:
        bias = load_bias_inside(bias_ptr, bias_row, rows_0, N, keys, True)
    else:
        bias = load_bias(bias_ptr, bias_row, rows_0, N, keys, M, True)
    dq_0, dk, dv = _absorb(q_0, do_0, lse_0, delta_0, dq_0, k, v, dk, dv, bias, scale_log2)
    if ROWS_1 > 0:
        bias = load_bias(bias_ptr, bias_row, rows_1, N, keys, M, True)
        dq_1, dk, dv = _absorb(q_1, do_1, lse_1, delta_1, dq_1, k, v, dk, dv, bias, scale_log2)
    store_rows(dk_ptr, dk_row, dk * scale, keys, M, D, BLOCK_D)
    store_rows(dv_ptr, dk_row, dv, keys, M, D, BLOCK_D)
    return dq_0, dq_1


@triton.jit
def _bwd_whole_kernel(
    dq_ptr,  # [B, H, N, D]
    dk_ptr,  # [B, H, M, D]
    dv_ptr,  # as dk
    delta_ptr,  # [B, H, N] fp32
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, M, D]
    v_ptr,  # [B, H, M, D]
    bias_ptr,  # [H, N, M padded to 16], in units of log2
    out_ptr,  # [B, H, N, D]
    do_ptr,  # [B, H, N, D]
    lse_ptr,  # [B, H, N] fp32
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
    scale,
    scale_log2,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS_0: tl.constexpr,
    ROWS_1: tl.constexpr,  # queries beyond the first ROWS_0; 0 without any
    BLOCK_M: tl.constexpr,
    REST: tl.constexpr,  # keys of a last, shorter block; 0 without one
):
    pid = tl.program_id(0)
    h, b = pid % H, pid // H
    h64, b64 = h.to(tl.int64), b.to(tl.int64)
    bias_ptr += h64 * bias_stride_h
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b64 * aligned(q_stride_b, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b64 * aligned(k_stride_b, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b64 * aligned(v_stride_b, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN) + b64 * aligned(out_stride_b, ALIGN)
    do_ptr += h64 * aligned(do_stride_h, ALIGN) + b64 * aligned(do_stride_b, ALIGN)
    dq_ptr += h64 * aligned(dq_stride_h, ALIGN) + b64 * aligned(dq_stride_b, ALIGN)
    dk_ptr += h64 * aligned(dk_stride_h, ALIGN) + b64 * aligned(dk_stride_b, ALIGN)
    dv_ptr += h64 * aligned(dk_stride_h, ALIGN) + b64 * aligned(dk_stride_b, ALIGN)
    lse_ptr += (b64 * H + h) * N
    delta_ptr += (b64 * H + h) * N
    q_row, do_row, out_row = aligned(q_stride_n, ALIGN), aligned(do_stride_n, ALIGN), aligned(out_stride_n, ALIGN)
    k_row, v_row = aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    dq_row, dk_row = aligned(dq_stride_n, ALIGN), aligned(dk_stride_m, ALIGN)
    rows_0 = tl.arange(0, ROWS_0)
    q_0, do_0, lse_0, delta_0 = _load_queries(
        q_ptr, q_row, do_ptr, do_row, out_ptr, out_row, lse_ptr, delta_ptr, rows_0, N, D, BLOCK_D
    )
    dq_0 = tl.zeros([ROWS_0, BLOCK_D], tl.float32)
    rows_1, q_1, do_1, lse_1, delta_1, dq_1 = rows_0, q_0, do_0, lse_0, delta_0, dq_0
    if ROWS_1 > 0:
        rows_1 = ROWS_0 + tl.arange(0, ROWS_1)
        q_1, do_1, lse_1, delta_1 = _load_queries(
            q_ptr, q_row, do_ptr, do_row, out_ptr, out_row, lse_ptr, delta_ptr, rows_1, N, D, BLOCK_D
        )
        dq_1 = tl.zeros([ROWS_1, BLOCK_D], tl.float32)
    whole = M // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        dq_0, dq_1 = _keys(
            q_0, do_0, lse_0, delta_0, dq_0, rows_0, q_1, do_1, lse_1, delta_1, dq_1, rows_1, dk_ptr, dv_ptr, dk_row,
            k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_stride_n, start + tl.arange(0, BLOCK_M), N, M, scale, scale_log2,
            True, D, BLOCK_D, ROWS_1,
        )  # fmt: skip
    if REST > 0:
        dq_0, dq_1 = _keys(
            q_0, do_0, lse_0, delta_0, dq_0, rows_0, q_1, do_1, lse_1, delta_1, dq_1, rows_1, dk_ptr, dv_ptr, dk_row,
            k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_stride_n, whole + tl.arange(0, REST), N, M, scale, scale_log2,
            False, D, BLOCK_D, ROWS_1,
        )  # fmt: skip
    store_rows(dq_ptr, dq_row, dq_0 * scale, rows_0, N, D, BLOCK_D)
    if ROWS_1 > 0:
        store_rows(dq_ptr, dq_row, dq_1 * scale, rows_1, N, D, BLOCK_D)


def fits_whole(q: Tensor, expanded: bool, arch: int) -> bool:
    """Whether one program holds all queries of an image and head, and enough programs are left."""
    B, H, N, D = q.shape
    if reads_operands_from_registers(arch) or reads_results_from_tensor_memory(arch):
        return False
    return 64 < N <= 256 and D <= 32 and q.element_size() == 2 and expanded and B * H >= _common.PROGRAMS_WANTED


def whole_calls(dq: Tensor, dk: Tensor, dv: Tensor, shared: dict[str, Any]) -> list[Call]:
    """The launch that fills dq, dk, dv and delta."""
    B, H, N, _ = dq.shape
    M = dk.shape[2]
    rows = (128, 16 if N > 128 else 0) if N <= 144 else (256, 0)
    args = {name: value for name, value in shared.items() if name != "EXPANDED"} | {
        "dq_ptr": dq, "dk_ptr": dk, "dv_ptr": dv,
        "dq_stride_b": dq.stride(0), "dq_stride_h": dq.stride(1), "dq_stride_n": dq.stride(2),
        "dk_stride_b": dk.stride(0), "dk_stride_h": dk.stride(1), "dk_stride_m": dk.stride(2),
        "ROWS_0": rows[0], "ROWS_1": rows[1], "BLOCK_M": 64, "REST": rest_block(M, 64),
    }  # fmt: skip
    return [Call(kernel=_bwd_whole_kernel, args=args, grid=B * H, pass_name="bwd_qkv", products=5,
                 scores=B * H * N * M, num_warps=8, num_stages=1)]  # fmt: skip
