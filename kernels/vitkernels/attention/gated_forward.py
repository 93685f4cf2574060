"""Forward of gated attention: a small kernel weighs the positions once, the main one adds two products with v."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention.blocks import last_tile, padded_head_dim, rest_block, stride_alignment, tall_tile
from vitkernels.attention.gated_backward import load_logits, load_weights, row_softmax
from vitkernels.attention.tiles import aligned, load_rows_or_last, store_rows, sum_rows
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.constants import LOG2E, LOWEST, OUTSIDE
from vitkernels.runtime.device import reads_results_from_tensor_memory


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
def _absorb(q, k_ptr, k_row, v_ptr, v_row, weights, cols, N, scale_log2, top, total, acc, positional,
            MASKED: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """One block of keys into the running softmax (top, total, acc) and into the positional product of one image."""
    BLOCK_D: tl.constexpr = q.shape[1]
    s = tl.dot(q, tl.trans(load_rows_or_last(k_ptr, k_row, cols, N, D, BLOCK_D)), input_precision="tf32x3")
    if MASKED:
        s = tl.where(cols[None, :] < N, s * scale_log2, OUTSIDE)
        new_top = tl.maximum(top, tl.max(s, 1))
    else:  # the largest score before scaling is also the largest after it: scaling fuses with the subtraction
        new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
        s = s * scale_log2
    shrink = tl.math.exp2(top - new_top)[:, None]
    p = tl.math.exp2(s - new_top[:, None]).to(q.dtype)
    v = load_rows_or_last(v_ptr, v_row, cols, N, D, BLOCK_D)
    acc = tl.dot(p, v, acc * shrink, input_precision="tf32x3")
    positional = tl.dot(weights, v, positional, input_precision="tf32x3")
    return new_top, sum_rows(p, total * shrink), acc, positional


@triton.jit
def _finish(out_ptr, out_row, lse_ptr, lse_at, rows, N, keep, top, total, acc, positional, D: tl.constexpr):
    denominator = tl.max(total, 1)
    out = acc * (keep / denominator)[:, None] + positional
    store_rows(out_ptr, out_row, out, rows, N, D, acc.shape[1])
    if lse_ptr is not None:
        tl.store(lse_ptr + lse_at + rows, top + tl.math.log2(denominator / keep), mask=rows < N)


@triton.jit
def _tile(
    out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step,
    v_row, weights_ptr, keep, rows, N, P, scale_log2, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    REST: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head, of one or two images."""
    R: tl.constexpr = rows.shape[0]
    top_0 = tl.full([R], LOWEST, tl.float32)
    total_0 = tl.zeros([R, 8], tl.float32)
    acc_0 = tl.zeros([R, BLOCK_D], tl.float32)
    positional_0 = tl.zeros([R, BLOCK_D], tl.float32)
    q_0 = load_rows_or_last(q_ptr, q_row, rows, N, D, BLOCK_D)
    if IMAGES > 1:
        top_1, total_1, acc_1, positional_1 = top_0, total_0, acc_0, positional_0
        q_1 = load_rows_or_last(q_ptr + q_step, q_row, rows, N, D, BLOCK_D)
    whole = N // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        weights = tl.load(weights_ptr + tl.minimum(rows, N - 1)[:, None] * P + cols[None, :])
        top_0, total_0, acc_0, positional_0 = _absorb(
            q_0, k_ptr, k_row, v_ptr, v_row, weights, cols, N, scale_log2, top_0, total_0, acc_0, positional_0, False, D
        )
        if IMAGES > 1:
            top_1, total_1, acc_1, positional_1 = _absorb(
                q_1, k_ptr + k_step, k_row, v_ptr + v_step, v_row, weights, cols, N, scale_log2, top_1, total_1, acc_1,
                positional_1, False, D,
            )  # fmt: skip
    if REST > 0:
        cols = whole + tl.arange(0, REST)
        weights = load_weights(weights_ptr, N, P, rows, cols)
        top_0, total_0, acc_0, positional_0 = _absorb(
            q_0, k_ptr, k_row, v_ptr, v_row, weights, cols, N, scale_log2, top_0, total_0, acc_0, positional_0, True, D
        )
        if IMAGES > 1:
            top_1, total_1, acc_1, positional_1 = _absorb(
                q_1, k_ptr + k_step, k_row, v_ptr + v_step, v_row, weights, cols, N, scale_log2, top_1, total_1, acc_1,
                positional_1, True, D,
            )  # fmt: skip
    _finish(out_ptr, out_row, lse_ptr, lse_at, rows, N, keep, top_0, total_0, acc_0, positional_0, D)
    if IMAGES > 1:
        _finish(
            out_ptr + out_step, out_row, lse_ptr, lse_at + lse_step, rows, N, keep, top_1, total_1, acc_1,
            positional_1, D,
        )  # fmt: skip


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
    B,
    H,
    N,
    P,
    scale_log2,  # not negative
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    REST: tl.constexpr,  # keys of a last, shorter block; 0 without one
    LAST: tl.constexpr,  # queries of the last tile
    IMAGES: tl.constexpr,  # 1 or 2 images share each tile of weights
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    tile, h = pid % tiles, (pid // tiles) % H
    # Of an odd number of images the last pair begins one early: two programs compute that image, and store the same.
    b64 = tl.minimum(pid // (tiles * H) * IMAGES, B - IMAGES).to(tl.int64)
    h64 = tl.cast(h, tl.int64)
    weights_ptr += h64 * N * P
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b64 * q_step
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b64 * k_step
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b64 * v_step
    out_step = aligned(out_stride_b, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN) + b64 * out_step
    out_row = aligned(out_stride_n, ALIGN)
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_n, ALIGN), aligned(v_stride_n, ALIGN)
    keep = tl.sigmoid(-tl.load(gate_ptr + h).to(tl.float32))  # 1 - g without cancellation
    lse_at, lse_step = (b64 * H + h) * N, H * N
    if LAST < BLOCK_N and tile == tiles - 1:
        _tile(
            out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, weights_ptr, keep, tile * BLOCK_N + tl.arange(0, LAST), N, P, scale_log2, D, BLOCK_D,
            BLOCK_M, REST, IMAGES,
        )  # fmt: skip
    else:
        _tile(
            out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, weights_ptr, keep, tile * BLOCK_N + tl.arange(0, BLOCK_N), N, P, scale_log2, D, BLOCK_D,
            BLOCK_M, REST, IMAGES,
        )  # fmt: skip


def gated_forward_calls(
    out: Tensor, lse: Tensor | None, weights: Tensor, q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor,
    scale: float, arch: int,
) -> list[Call]:  # fmt: skip
    """The launches that fill weights [H, N, N padded to 16] in q.dtype, out and, where given, lse [B, H, N] fp32."""
    B, H, N, D = q.shape
    P = weights.shape[2]
    full = q.element_size() == 4
    block_n = block_m = 32 if full else 64
    images, warps = 1, 4
    if tall_tile(q, arch):
        # Triton 3.6 spills with two images whose products are in tensor memory.
        block_n, images, warps = 128, 1 if reads_results_from_tensor_memory(arch) else min(B, 2), 8
    if scale < 0:  # the kernel looks for the largest score before it scales
        q, scale = -q, -scale
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
        "B": B, "H": H, "N": N, "P": P, "scale_log2": scale * LOG2E.value,
        "ALIGN": stride_alignment(q, k, v, out), "D": D, "BLOCK_D": padded_head_dim(D), "BLOCK_N": block_n,
        "BLOCK_M": block_m, "REST": rest_block(N, block_m),
        "LAST": last_tile(N, block_n), "IMAGES": images,
    }  # fmt: skip
    return [
        Call(kernel=_weights_kernel, args=weights_args, grid=H * cdiv(N, 16), pass_name="fwd_weights"),
        Call(kernel=_fwd_kernel, args=args, grid=cdiv(N, block_n) * H * cdiv(B, images), pass_name="fwd",
             products=2, scores=B * H * N * N, num_warps=warps, num_stages=1),
    ]  # fmt: skip
