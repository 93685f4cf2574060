"""dQ, dK and dV of bias_attention in one pass, where a program holds all queries of an image and head.

Queries and their gradients stay on chip while the program walks through the keys: scores are computed once, where
by_query.py and by_key.py compute them once each. For 65 to 256 queries of up to 32 channels; beyond, dQ leaves no
registers.

The pass over the bias that follows (queries_held_bias.py) has no time left on the fp32 lanes, so the matrix unit
subtracts log-sum-exp and delta there: it multiplies them by a matrix of constants and adds the scores' product on top.
Matrix products take fp16 or bf16, too short for either number. So this pass splits each into two or three numbers of
that dtype which sum to it, and leaves them as a row of 8 for each query: its parts.
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
from vitkernels.attention.tiles import aligned, load_bias, load_bias_inside, load_rows_or_last, store_rows
from vitkernels.runtime.call import Call
from vitkernels.runtime.device import reads_operands_from_registers, reads_results_from_tensor_memory


@triton.jit
def _store_parts(parts_ptr, lse, delta, rows, N):
    """parts [N, 8]: columns 0, 2 and 4 sum to lse / 256 (which stays in fp16's range), columns 1 and 3 to delta."""
    KIND: tl.constexpr = parts_ptr.dtype.element_ty
    lse = lse * 0.00390625
    lse_0, delta_0 = lse.to(KIND), delta.to(KIND)
    lse -= lse_0.to(tl.float32)
    lse_1, delta_1 = lse.to(KIND), (delta - delta_0.to(tl.float32)).to(KIND)
    lse_2 = (lse - lse_1.to(tl.float32)).to(KIND)
    zero = tl.zeros_like(lse_2)
    left = tl.join(tl.join(lse_0, lse_2), tl.join(lse_1, zero))
    right = tl.join(tl.join(delta_0, zero), tl.join(delta_1, zero))
    parts = tl.join(left, right).reshape(rows.shape[0], 8)
    store_rows(parts_ptr, 8, parts, rows, N, 8, 8)


@triton.jit
def _load_queries(
    q_ptr, q_row, do_ptr, do_row, out_ptr, out_row, lse_ptr, parts_ptr, rows, N, per_scale, D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(q, do [R, BLOCK_D], lse, delta [R], rows [R]); stores their parts."""
    q = load_rows_or_last(q_ptr, q_row, rows, N, D, BLOCK_D)
    do = load_rows_or_last(do_ptr, do_row, rows, N, D, BLOCK_D)
    out = load_rows_or_last(out_ptr, out_row, rows, N, D, BLOCK_D)
    lse = tl.load(lse_ptr + rows, mask=rows < N, other=1.0e30)  # rows beyond N weigh nothing
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    _store_parts(parts_ptr, lse * per_scale, delta, rows, N)
    return q, do, lse, delta, rows


@triton.jit
def _keys(
    queries, dqs, dk_ptr, dv_ptr, dk_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_row, keys, N, M, scale,
    score_scale, INSIDE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
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
            bias = load_bias_inside(bias_ptr, bias_row, rows, N, keys, True)
        else:
            bias = load_bias(bias_ptr, bias_row, rows, N, keys, M, True)
        p = tl.math.exp2(tl.dot(q, tl.trans(k)) * score_scale + bias - lse[:, None])
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
    parts_ptr,  # [B, H, N, 8]
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, M, D]
    v_ptr,  # [B, H, M, D]
    bias_ptr,  # [H, N, M padded to 16], in units of log2
    out_ptr,  # [B, H, N, D]
    do_ptr,  # [B, H, N, D]
    lse_ptr,  # [B, H, N] fp32
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
    per_scale,  # 1 / score_scale
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
    lse_ptr += (b64 * H + h) * N
    parts_ptr += (b64 * H + h) * N * 8
    q_row, do_row, out_row = aligned(q_stride_n, ALIGN), aligned(do_stride_n, ALIGN), aligned(out_stride_n, ALIGN)
    k_row, v_row = aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    dq_row, dk_row = aligned(dq_stride_n, ALIGN), aligned(dk_stride_m, ALIGN)
    queries, dqs = (), ()
    for i in tl.static_range(TILES):
        rows = i * ROWS + tl.arange(0, LAST if i == TILES - 1 else ROWS)
        queries += (
            _load_queries(
                q_ptr, q_row, do_ptr, do_row, out_ptr, out_row, lse_ptr, parts_ptr, rows, N, per_scale, D, BLOCK_D
            ),
        )
        dqs += (tl.zeros([rows.shape[0], BLOCK_D], tl.float32),)
    whole: tl.constexpr = M // BLOCK_M * BLOCK_M
    if REST > 0:  # first, while dQ takes no registers yet
        dqs = _keys(
            queries, dqs, dk_ptr, dv_ptr, dk_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_stride_n,
            whole + tl.arange(0, REST), N, M, scale, score_scale, whole + REST <= bias_stride_n, D,
            BLOCK_D,
        )  # fmt: skip
    for start in range(0, whole, BLOCK_M):
        dqs = _keys(
            queries, dqs, dk_ptr, dv_ptr, dk_row, k_ptr, k_row, v_ptr, v_row, bias_ptr, bias_stride_n,
            start + tl.arange(0, BLOCK_M), N, M, scale, score_scale, True, D, BLOCK_D,
        )  # fmt: skip
    for i in tl.static_range(TILES):
        rows = i * ROWS + tl.arange(0, LAST if i == TILES - 1 else ROWS)
        store_rows(dq_ptr, dq_row, dqs[i] * scale, rows, N, D, BLOCK_D)


def fits_whole(q: Tensor, scale: float, arch: int) -> bool:
    """Whether one program holds all queries of an image and head, and enough programs are left.

    Not for scales so small or large that lse / scale leaves the range or the digits of its parts (`_store_parts`).
    """
    B, H, N, D = q.shape
    if reads_operands_from_registers(arch) or reads_results_from_tensor_memory(arch) or not 2**-8 < abs(scale) < 2**8:
        return False
    return 64 < N <= 256 and D <= 32 and q.element_size() == 2 and B * H >= blocks.PROGRAMS_WANTED


def alignment(shared: dict[str, Any]) -> int:
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


def whole_calls(dq: Tensor, dk: Tensor, dv: Tensor, parts: Tensor, shared: dict[str, Any]) -> list[Call]:
    """The launch that fills dq, dk, dv and parts [B, H, N, 8] in q.dtype."""
    B, H, N, _ = dq.shape
    M = dk.shape[2]
    tiles = _tiles(N)
    args = {name: value for name, value in shared.items() if name not in ("EXPANDED", "delta_ptr")} | {
        "dq_ptr": dq, "dk_ptr": dk, "dv_ptr": dv, "parts_ptr": parts, "per_scale": 1 / shared["score_scale"],
        "dq_stride_b": dq.stride(0), "dq_stride_h": dq.stride(1), "dq_stride_n": dq.stride(2),
        "dk_stride_b": dk.stride(0), "dk_stride_h": dk.stride(1), "dk_stride_m": dk.stride(2),
        "ALIGN": alignment(shared),
        "TILES": len(tiles), "ROWS": tiles[0], "LAST": tiles[-1], "BLOCK_M": 64, "REST": rest_block(M, 64),
    }  # fmt: skip
    return [Call(kernel=_bwd_whole_kernel, args=args, grid=B * H, pass_name="bwd_qkv", products=5,
                 scores=B * H * N * M, num_warps=4 if len(tiles) > 1 else 8, num_stages=2)]  # fmt: skip
