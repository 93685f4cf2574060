"""Forward of gated attention: a small kernel weighs the positions once, the main one adds two products with v.

Blocks of keys, values and weights are copied to shared memory while earlier ones are multiplied.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention.blocks import padded_head_dim, stride_alignment
from vitkernels.attention.forward.softmax import nothing_yet
from vitkernels.attention.gated_backward import load_logits, row_softmax
from vitkernels.attention.tiles import aligned, load_rows_or_last, store_rows, sum_rows
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.constants import LOG2E, OUTSIDE
from vitkernels.runtime.device import reads_operands_from_registers


@triton.jit
def _weights_kernel(
    weights_ptr,  # [H, N, P] with P = N padded to 16
    logits_ptr,  # [H, N, N]
    gate_ptr,  # [H]
    N,
    P,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tiles = tl.cdiv(N, BLOCK_N)
    rows = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(0) // tiles
    logits_ptr += tl.cast(head, tl.int64) * N * N
    weights_ptr += tl.cast(head, tl.int64) * N * P
    gate = tl.sigmoid(tl.load(gate_ptr + head).to(tl.float32))
    largest, total = row_softmax(logits_ptr, rows, N, BLOCK_M)
    for start in range(0, P, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        p = tl.exp(load_logits(logits_ptr, rows, cols, N) - largest[:, None]) * (gate / total)[:, None]
        mask = (rows[:, None] < N) & (cols[None, :] < P)
        tl.store(weights_ptr + rows[:, None] * P + cols[None, :], p.to(weights_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _fwd_kernel(
    out_ptr,  # [B, H, N, D]
    lse_ptr,  # [B, H, N] log2(denominators / (1 - g)), or None
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, N, D]
    v_ptr,  # [B, H, N, D]
    weights_ptr,  # [H, N, P]
    gate_ptr,  # [H]
    out_stride_b,
    out_stride_h,
    out_stride_n,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    H,
    N,
    P,
    scale_log2,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,  # blocks on their way at once, and one in use
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    rows, h, b = pid % tiles * BLOCK_N + tl.arange(0, BLOCK_N), (pid // tiles) % H, pid // (tiles * H)
    h64, b64 = h.to(tl.int64), b.to(tl.int64)
    weights_ptr += h64 * N * P
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b64 * aligned(q_stride_b, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b64 * aligned(k_stride_b, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b64 * aligned(v_stride_b, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN) + b64 * aligned(out_stride_b, ALIGN)
    q_row, out_row = aligned(q_stride_n, ALIGN), aligned(out_stride_n, ALIGN)
    k_row, v_row = aligned(k_stride_n, ALIGN), aligned(v_stride_n, ALIGN)
    keep = tl.sigmoid(-tl.load(gate_ptr + h).to(tl.float32))  # 1 - g without cancellation

    q = load_rows_or_last(q_ptr, q_row, rows, N, D, BLOCK_D)
    top, total, acc = nothing_yet(BLOCK_N, BLOCK_D)
    positional = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for start in tl.range(0, N, BLOCK_M, num_stages=STAGES):
        cols = start + tl.arange(0, BLOCK_M)
        edge = tl.where(cols < N, 0.0, OUTSIDE)
        at = weights_ptr + tl.minimum(rows, N - 1)[:, None] * P + cols[None, :]
        weights = tl.load(at, mask=(cols < P)[None, :], other=0.0)
        k = load_rows_or_last(k_ptr, k_row, cols, N, D, BLOCK_D)
        v = load_rows_or_last(v_ptr, v_row, cols, N, D, BLOCK_D)
        s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale_log2 + edge[None, :]
        new_top = tl.maximum(top, tl.max(s, 1))
        shrink = tl.math.exp2(top - new_top)[:, None]
        p = tl.math.exp2(s - new_top[:, None]).to(q.dtype)
        total = sum_rows(p, total * shrink)
        acc = tl.dot(p, v, acc * shrink, input_precision="tf32x3")
        positional = tl.dot(weights, v, positional, input_precision="tf32x3")
        top = new_top
    denominator = tl.max(total, 1)
    out = acc * (keep / denominator)[:, None] + positional
    store_rows(out_ptr, out_row, out, rows, N, D, BLOCK_D)
    if lse_ptr is not None:
        lse_ptr += (b64 * H + h) * N
        tl.store(lse_ptr + rows, top + tl.math.log2(denominator / keep), mask=rows < N)


def _blocks(q: Tensor, arch: int) -> tuple[int, int, int]:
    """Queries, keys and stages of a program: the fastest without spills by the audit's clock."""
    if q.element_size() == 4:
        return 32, 16, 2
    if q.shape[3] > 64 or reads_operands_from_registers(arch):
        return 64, 16, 3
    return 64, 32, 3


def gated_forward_calls(
    out: Tensor, lse: Tensor | None, weights: Tensor, q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor,
    scale: float, arch: int,
) -> list[Call]:  # fmt: skip
    """The launches that fill weights [H, N, N padded to 16] in q.dtype, out and, where given, lse [B, H, N] fp32."""
    B, H, N, D = q.shape
    P = weights.shape[2]
    rows, keys, stages = _blocks(q, arch)
    weights_args = {
        "weights_ptr": weights, "logits_ptr": positional, "gate_ptr": gate, "N": N, "P": P, "BLOCK_N": 16,
        "BLOCK_M": 128,
    }  # fmt: skip
    args = {
        "out_ptr": out, "lse_ptr": lse, "q_ptr": q, "k_ptr": k, "v_ptr": v, "weights_ptr": weights, "gate_ptr": gate,
        "out_stride_b": out.stride(0), "out_stride_h": out.stride(1), "out_stride_n": out.stride(2),
        "q_stride_b": q.stride(0), "q_stride_h": q.stride(1), "q_stride_n": q.stride(2),
        "k_stride_b": k.stride(0), "k_stride_h": k.stride(1), "k_stride_n": k.stride(2),
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_n": v.stride(2),
        "H": H, "N": N, "P": P, "scale_log2": scale * LOG2E.value,
        "ALIGN": stride_alignment(q, k, v, out), "D": D, "BLOCK_D": padded_head_dim(D), "BLOCK_N": rows,
        "BLOCK_M": keys, "STAGES": stages,
    }  # fmt: skip
    return [
        Call(kernel=_weights_kernel, args=weights_args, grid=H * cdiv(N, 16), pass_name="fwd_weights"),
        Call(kernel=_fwd_kernel, args=args, grid=cdiv(N, rows) * H * B, pass_name="fwd",
             products=2, scores=B * H * N * N, num_stages=stages),
    ]  # fmt: skip
