"""Gradients of bias_attention, bit for bit the same from run to run: no atomics, no sum whose order can change.

With P = softmax(S + bias), dP = dO V^T, delta = rowsum(dO * O):  dS = P * (dP - delta),  dV = P^T dO,
dQ = scale dS K,  dK = scale dS^T Q,  dBias = sum over images of dS.

Two passes, each of which recomputes P and dS, so that each sum stays inside one program:

- queries stand still (`_bwd_query_kernel`): a program owns a tile of queries of one head, a chunk of keys and a
  slice of the images. It keeps bias and dBias of the chunk in registers for its whole slice. Chunks are launched one
  after the other and carry dQ through an fp32 buffer. The first also makes delta.
- keys stand still (bias_attention_bwd_key.py): dK and dV in registers, on transposed scores. One kernel walks through a
  group of images with all queries unrolled, the other through a span of queries of one image; where there are several
  spans they leave partial sums.

The partial dBias (one per slice) and dK, dV (one per span) are summed in a fixed order.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vitkernels._common import (
    LOG2E,
    Call,
    aligned,
    cdiv,
    images_per_program,
    load_bias,
    load_rows_or_last,
    padded_head_dim,
    reads_operands_from_registers,
    store_rows,
    stride_alignment,
    token_major,
)
from vitkernels.bias_attention_bwd_key import key_calls


@triton.jit
def _absorb_keys(
    q, do, acc, dbias, k_ptr, k_row, v_ptr, v_row, bias, lse, delta, keys, n_keys, scale_log2,
    GATED: tl.constexpr, PADDED: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Adds dS K of a tile of keys to acc [R, BLOCK_D] and its dS (gated: dP) to dbias [R, K]; lse and delta are [R]."""
    BLOCK_D: tl.constexpr = q.shape[1]
    k = load_rows_or_last(k_ptr, k_row, keys, n_keys, D, BLOCK_D)
    v = load_rows_or_last(v_ptr, v_row, keys, n_keys, D, BLOCK_D)
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale_log2
    if not GATED:
        s += bias
    elif PADDED:
        s = tl.where(keys[None, :] < n_keys, s, -1.0e30)
    dp = tl.dot(do, tl.trans(v), input_precision="tf32x3")
    ds = tl.math.exp2(s - lse[:, None]) * (dp - delta[:, None])
    acc = tl.dot(ds.to(q.dtype), k, acc, input_precision="tf32x3")
    return acc, dbias + (dp if GATED else ds)


@triton.jit
def _bwd_query_kernel(
    dq_ptr,  # [B, H, N, D]
    carry_ptr,  # [B, H, N, D] fp32 laid out as dq, or None when one chunk holds all keys
    dbias_ptr,  # [slices, H, N, M] fp32, or None when the bias needs no gradient
    delta_ptr,  # [B, H, N] fp32
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, M, D]
    v_ptr,  # [B, H, M, D]
    bias_ptr,  # [H, N, M]
    out_ptr,  # [B, H, N, D]
    do_ptr,  # [B, H, N, D]
    lse_ptr,  # [B, H, N] fp32
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
    first_key,  # of this launch's chunk
    scale,
    scale_log2,
    FIRST: tl.constexpr,  # the chunk makes delta and starts dQ
    LAST: tl.constexpr,  # the chunk finishes dQ
    GATED: tl.constexpr,
    PADDED: tl.constexpr,  # the chunk reaches beyond M
    EXPANDED: tl.constexpr,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEYS_0: tl.constexpr,
    KEYS_1: tl.constexpr,
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
    if carry_ptr is not None:
        carry_ptr += h64 * aligned(dq_stride_h, ALIGN)
    if dbias_ptr is not None:
        dbias_ptr += (tl.cast(part, tl.int64) * H + h) * N * M
    keys_0 = first_key + tl.arange(0, KEYS_0)
    bias_0 = 0.0 if GATED else load_bias(bias_ptr, bias_stride_n, rows, N, keys_0, M, EXPANDED)
    dbias_0 = tl.zeros([BLOCK_N, KEYS_0], tl.float32)
    if KEYS_1 > 0:
        keys_1 = first_key + KEYS_0 + tl.arange(0, KEYS_1)
        bias_1 = 0.0 if GATED else load_bias(bias_ptr, bias_stride_n, rows, N, keys_1, M, EXPANDED)
        dbias_1 = tl.zeros([BLOCK_N, KEYS_1], tl.float32)
    for b in range(part * IMAGES, min(part * IMAGES + IMAGES, B)):
        b64 = tl.cast(b, tl.int64)
        row_b = (b64 * H + h) * N
        q = load_rows_or_last(q_ptr + b64 * aligned(q_stride_b, ALIGN), aligned(q_stride_n, ALIGN), rows, N, D, BLOCK_D)
        do = load_rows_or_last(
            do_ptr + b64 * aligned(do_stride_b, ALIGN), aligned(do_stride_n, ALIGN), rows, N, D, BLOCK_D
        )
        lse = tl.load(lse_ptr + row_b + rows, mask=rows < N, other=0.0)
        if FIRST and not GATED:
            out = load_rows_or_last(
                out_ptr + b64 * aligned(out_stride_b, ALIGN), aligned(out_stride_n, ALIGN), rows, N, D, BLOCK_D
            )
            delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
            tl.store(delta_ptr + row_b + rows, delta, mask=rows < N)
        else:
            delta = tl.load(delta_ptr + row_b + rows, mask=rows < N, other=0.0)
        k_b = k_ptr + b64 * aligned(k_stride_b, ALIGN)
        v_b = v_ptr + b64 * aligned(v_stride_b, ALIGN)
        acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        acc, dbias_0 = _absorb_keys(
            q, do, acc, dbias_0, k_b, k_row, v_b, v_row, bias_0, lse, delta, keys_0, M, scale_log2,
            GATED, PADDED, D,
        )  # fmt: skip
        if KEYS_1 > 0:
            acc, dbias_1 = _absorb_keys(
                q, do, acc, dbias_1, k_b, k_row, v_b, v_row, bias_1, lse, delta, keys_1, M, scale_log2,
                GATED, PADDED, D,
            )  # fmt: skip
        acc *= scale
        dq_b = b64 * aligned(dq_stride_b, ALIGN)
        if not FIRST:
            acc += load_rows_or_last(carry_ptr + dq_b, dq_row, rows, N, D, BLOCK_D)
        if LAST:
            store_rows(dq_ptr + dq_b, dq_row, acc, rows, N, D, BLOCK_D)
        else:
            store_rows(carry_ptr + dq_b, dq_row, acc, rows, N, D, BLOCK_D)
    if dbias_ptr is not None:
        _store_scores(dbias_ptr, dbias_0, rows, N, keys_0, M)
        if KEYS_1 > 0:
            _store_scores(dbias_ptr, dbias_1, rows, N, keys_1, M)


@triton.jit
def _store_scores(ptr, tile, rows, n_rows, cols, n_cols):
    pointers = ptr + rows[:, None] * n_cols + cols[None, :]
    tl.store(pointers, tile, mask=(rows[:, None] < n_rows) & (cols[None, :] < n_cols))


def key_chunk(n_keys: int, head_dim: int, itemsize: int, arch: int) -> tuple[int, int]:
    """Sizes of the two pieces of keys whose bias and dBias a program of the query pass holds: what pads least.

    Where the matrix unit takes its operands from registers (sm_80, sm_120) fewer fit.
    """
    if itemsize == 4 or head_dim > 64:
        return (32, 0) if n_keys > 16 and not reads_operands_from_registers(arch) else (16, 0)
    choices = [(64, 0), (32, 16), (32, 0), (16, 0)]
    if reads_operands_from_registers(arch):
        choices = choices[2 if head_dim <= 32 else 3 :]
    elif head_dim <= 32:
        choices.insert(0, (64, 16))
    return min(choices, key=lambda choice: cdiv(n_keys, sum(choice)) * (sum(choice) + 32))


def bias_slices(batch: int, heads: int, n: int) -> int:
    """Into how many slices of images the partial bias gradients are split."""
    return cdiv(batch, images_per_program(batch, cdiv(n, 64) * heads))


def backward_calls(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dbias_parts: Tensor | None,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    out: Tensor,
    lse: Tensor,
    do: Tensor,
    scale: float,
    arch: int,
    *,
    expanded: bool = False,
    gated: bool = False,
) -> list[Call]:
    """The launches that fill dq, dk, dv (token-major), delta and, where given, dbias_parts.

    Args:
        dbias_parts: [bias_slices(), H, N, M] fp32.
        delta: [B, H, N] fp32.
        arch: 90 for sm_90.
        expanded: bias is padded along M to a multiple of 16 and in units of log2.
        gated: the gated attention of gated_attention.py: bias holds weights that are added to the softmax (whose lse is
            scaled), dbias_parts receives dP, and delta is given.
    """
    B, H, N, D = q.shape
    M = k.shape[2]
    block_d = padded_head_dim(D)
    block_n = block_m = 64 if q.element_size() == 2 else 32
    keys = key_chunk(M, D, q.element_size(), arch)
    images = images_per_program(B, cdiv(N, 64) * H)
    carry = token_major(dq, N, lse.dtype) if sum(keys) < M else None
    shared = {
        "q_ptr": q, "k_ptr": k, "v_ptr": v, "bias_ptr": bias, "do_ptr": do, "lse_ptr": lse, "delta_ptr": delta,
        "q_stride_b": q.stride(0), "q_stride_h": q.stride(1), "q_stride_n": q.stride(2),
        "k_stride_b": k.stride(0), "k_stride_h": k.stride(1), "k_stride_m": k.stride(2),
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_m": v.stride(2),
        "do_stride_b": do.stride(0), "do_stride_h": do.stride(1), "do_stride_n": do.stride(2),
        "bias_stride_h": bias.stride(0), "bias_stride_n": bias.stride(1), "B": B, "H": H, "N": N, "M": M,
        "scale": scale, "scale_log2": scale * LOG2E, "EXPANDED": expanded, "GATED": gated, "D": D, "BLOCK_D": block_d,
        "ALIGN": stride_alignment(q, k, v, do, out, dq, dk),
    }  # fmt: skip
    query = shared | {
        "dq_ptr": dq, "carry_ptr": carry, "dbias_ptr": dbias_parts, "out_ptr": out, "IMAGES": images,
        "dq_stride_b": dq.stride(0), "dq_stride_h": dq.stride(1), "dq_stride_n": dq.stride(2),
        "out_stride_b": out.stride(0), "out_stride_h": out.stride(1), "out_stride_n": out.stride(2),
        "BLOCK_N": block_n, "KEYS_0": keys[0], "KEYS_1": keys[1],
    }  # fmt: skip
    calls = [
        Call(
            kernel=_bwd_query_kernel,
            args=query
            | {
                "first_key": first,
                "FIRST": first == 0,
                "LAST": first + sum(keys) >= M,
                "PADDED": first + sum(keys) > M,
            },
            grid=cdiv(N, block_n) * H * cdiv(B, images),
            pass_name=f"bwd_query_{first}",
            products=3,
            num_stages=1,
            scores=B * H * N * min(sum(keys), M - first),
        )
        for first in range(0, M, sum(keys))
    ]
    return calls + key_calls(dk, dv, shared, block_n, block_m, arch)
