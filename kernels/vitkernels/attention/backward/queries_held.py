"""dQ, dK and dV of bias_attention in one pass, where a program holds all queries of an image and head.

Queries and their gradients stay on chip while the program walks through the keys: scores are computed once, where
by_query.py and by_key.py compute them once each. For 65 to 256 queries of up to 32 channels; beyond, dQ leaves no
registers.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention import blocks
from vitkernels.attention.blocks import rest_block
from vitkernels.attention.tiles import (
    aligned,
    load_bias,
    load_bias_inside,
    load_lse,
    load_rows_or_last,
    lse_step,
    softmax_weights,
    store_rows,
)
from vitkernels.runtime.call import Call
from vitkernels.runtime.device import reads_operands_from_registers, reads_results_from_tensor_memory


@triton.jit
def _load_queries(
    q_ptr, q_row, do_ptr, do_row, out_ptr, out_row, lse_ptr, delta_ptr, rows, N, EXPANDED: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(q, do [R, BLOCK_D], lse of `load_lse`, delta [R], rows [R]); stores delta."""
    q = load_rows_or_last(q_ptr, q_row, rows, N, D, BLOCK_D)
    do = load_rows_or_last(do_ptr, do_row, rows, N, D, BLOCK_D)
    out = load_rows_or_last(out_ptr, out_row, rows, N, D, BLOCK_D)
    lse = load_lse(lse_ptr, rows, rows, N, EXPANDED)
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + rows, delta, mask=rows < N)
    return q, do, lse, delta, rows


@triton.jit
def _keys(
    queries, dqs, dk_ptr, dv_ptr, dk_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_row, keys, N, M, scale,
    score_scale, INSIDE: tl.constexpr, EXPANDED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys, from all queries; dQ of each tile of queries with what these keys add to it."""
    k = load_rows_or_last(k_ptr, k_row, keys, M, D, BLOCK_D)
    v = load_rows_or_last(v_ptr, v_row, keys, M, D, BLOCK_D)
    dk = tl.zeros([keys.shape[0], BLOCK_D], tl.float32)
    dv = tl.zeros([keys.shape[0], BLOCK_D], tl.float32)
    added = ()
    for i in tl.static_range(len(dqs)):
        q, do, lse, delta, rows = queries[i]
        if INSIDE:
            bias = load_bias_inside(bias_ptr, bias_row, rows, N, keys, EXPANDED)
        else:
            bias = load_bias(bias_ptr, bias_row, rows, N, keys, M, EXPANDED)
        p = softmax_weights(tl.dot(q, tl.trans(k)) * score_scale + bias, lse, EXPANDED)
        dv = tl.dot(tl.trans(p.to(q.dtype)), do, dv)
        ds = (p * (tl.dot(do, tl.trans(v)) - delta[:, None])).to(q.dtype)
        added += (tl.dot(ds, k, dqs[i]),)
        dk = tl.dot(tl.trans(ds), q, dk)
    store_rows(dk_ptr, dk_row, dk * scale, keys, M, D, BLOCK_D)
    store_rows(dv_ptr, dk_row, dv, keys, M, D, BLOCK_D)
    return added


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
    lse_ptr,  # as `store_lse` fills it
    dq_stride_b,
    dq_stride_h,
    dq_stride_n: tl.constexpr,
    dk_stride_b,
    dk_stride_h,
    dk_stride_m: tl.constexpr,
    q_stride_b,
    q_stride_h,
    q_stride_n: tl.constexpr,
    k_stride_b,
    k_stride_h,
    k_stride_m: tl.constexpr,
    v_stride_b,
    v_stride_h,
    v_stride_m: tl.constexpr,
    out_stride_b,
    out_stride_h,
    out_stride_n: tl.constexpr,
    do_stride_b,
    do_stride_h,
    do_stride_n: tl.constexpr,
    bias_stride_h,
    bias_stride_n: tl.constexpr,
    B,
    H,
    N: tl.constexpr,  # constant, as M and the bias' row stride: masks and addresses made at run time take registers
    M: tl.constexpr,
    scale,
    score_scale,
    EXPANDED: tl.constexpr,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILES: tl.constexpr,  # of queries
    ROWS: tl.constexpr,  # queries of a tile
    LAST: tl.constexpr,  # queries of the last tile
    BLOCK_M: tl.constexpr,
    REST: tl.constexpr,  # keys of a shorter block; 0 without one
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
    lse_ptr += (b64 * H + h) * lse_step(N, EXPANDED)
    delta_ptr += (b64 * H + h) * N
    q_row, do_row, out_row = aligned(q_stride_n, ALIGN), aligned(do_stride_n, ALIGN), aligned(out_stride_n, ALIGN)
    k_row, v_row = aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    dq_row, dk_row = aligned(dq_stride_n, ALIGN), aligned(dk_stride_m, ALIGN)
    queries, dqs = (), ()
    for i in tl.static_range(TILES):
        rows = i * ROWS + tl.arange(0, LAST if i == TILES - 1 else ROWS)
        queries += (
            _load_queries(
                q_ptr, q_row, do_ptr, do_row, out_ptr, out_row, lse_ptr, delta_ptr, rows, N, EXPANDED, D, BLOCK_D
            ),
        )
        dqs += (tl.zeros([rows.shape[0], BLOCK_D], tl.float32),)
    whole: tl.constexpr = M // BLOCK_M * BLOCK_M
    if REST > 0:  # first, while dQ takes no registers yet
        dqs = _keys(
            queries, dqs, dk_ptr, dv_ptr, dk_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_stride_n,
            whole + tl.arange(0, REST), N, M, scale, score_scale, whole + REST <= bias_stride_n, EXPANDED,
            D, BLOCK_D,
        )  # fmt: skip
    for start in range(0, whole, BLOCK_M):
        dqs = _keys(
            queries, dqs, dk_ptr, dv_ptr, dk_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_stride_n,
            start + tl.arange(0, BLOCK_M), N, M, scale, score_scale, True, EXPANDED, D, BLOCK_D,
        )  # fmt: skip
    for i in tl.static_range(TILES):
        rows = i * ROWS + tl.arange(0, LAST if i == TILES - 1 else ROWS)
        store_rows(dq_ptr, dq_row, dqs[i] * scale, rows, N, D, BLOCK_D)


def fits_whole(q: Tensor, arch: int) -> bool:
    """Whether one program holds all queries of an image and head, and enough programs are left."""
    B, H, N, D = q.shape
    if reads_operands_from_registers(arch) or reads_results_from_tensor_memory(arch):
        return False
    return 64 < N <= 256 and D <= 32 and q.element_size() == 2 and B * H >= blocks.PROGRAMS_WANTED


def _alignment(shared: dict[str, Any]) -> int:
    """ALIGN where row strides are compile-time constants.

    1, which tells the compiler nothing, if the other strides are multiples of 16: those it sees by itself.
    """
    strides = (value for name, value in shared.items() if "_stride_" in name)
    return 1 if shared["ALIGN"] and all(stride % 16 == 0 for stride in strides) else shared["ALIGN"]


def _tiles(n: int) -> tuple[int, ...]:
    """Queries of each tile: several of 64 and a last of 16 or 64 for four warps, one of 256 for eight."""
    if n > 208:
        return (256,)
    whole, rest = divmod(n, 64)
    return (64,) * whole + ((16 if rest <= 16 else 64),) * (rest > 0)


def whole_calls(dq: Tensor, dk: Tensor, dv: Tensor, shared: dict[str, Any]) -> list[Call]:
    """The launch that fills dq, dk, dv and delta."""
    B, H, N, _ = dq.shape
    M = dk.shape[2]
    tiles = _tiles(N)
    args = shared | {
        "dq_ptr": dq, "dk_ptr": dk, "dv_ptr": dv,
        "dq_stride_b": dq.stride(0), "dq_stride_h": dq.stride(1), "dq_stride_n": dq.stride(2),
        "dk_stride_b": dk.stride(0), "dk_stride_h": dk.stride(1), "dk_stride_m": dk.stride(2),
        "ALIGN": _alignment(shared),
        "TILES": len(tiles), "ROWS": tiles[0], "LAST": tiles[-1], "BLOCK_M": 64, "REST": rest_block(M, 64),
    }  # fmt: skip
    return [Call(kernel=_bwd_whole_kernel, args=args, grid=B * H, pass_name="bwd_qkv", products=5,
                 scores=B * H * N * M, num_warps=4 if len(tiles) > 1 else 8, num_stages=2)]  # fmt: skip
