"""Gradients of gated_attention around the passes over scores that bias_attention_bwd.py makes.

`_delta_kernel` finds delta of every row and the partial sums of the gate's gradient; `_logits_gradient_kernel` takes
the summed gradient of the positional softmax through that softmax, once for all images. No atomics: see there.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vitkernels._common import (
    Call,
    aligned,
    cdiv,
    load_rows,
    load_rows_or_last,
    padded_head_dim,
    reads_results_from_tensor_memory,
    rest_block,
    stride_alignment,
    sum_parts_call,
    tall_tile,
)
from vitkernels.bias_attention_bwd import backward_calls, bias_slices

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_logits(ptr, rows, cols, N):
    """[R, K] fp32 tile of logits in units of log2, -inf outside."""
    mask = (rows[:, None] < N) & (cols[None, :] < N)
    return tl.load(ptr + rows[:, None] * N + cols[None, :], mask=mask, other=float("-inf")).to(tl.float32) * LOG2_E


@triton.jit
def row_softmax(ptr, rows, N, BLOCK: tl.constexpr):
    """Largest logit [R] of rows, in units of log2, and sum [R] of exp2(logit - largest)."""
    R: tl.constexpr = rows.shape[0]
    top = tl.full([R, BLOCK], -3.0e38, tl.float32)
    for start in range(0, N, BLOCK):
        top = tl.maximum(top, load_logits(ptr, rows, start + tl.arange(0, BLOCK), N))
    largest = tl.max(top, 1)
    total = tl.zeros([R, BLOCK], tl.float32)
    for start in range(0, N, BLOCK):
        total += tl.math.exp2(load_logits(ptr, rows, start + tl.arange(0, BLOCK), N) - largest[:, None])
    return largest, tl.sum(total, 1)


@triton.jit
def load_weights(ptr, N, P, rows, cols):
    """[R, K] tile of W [N, P] in its own dtype, zero outside."""
    return tl.load(ptr + rows[:, None] * P + cols[None, :], mask=(rows[:, None] < N) & (cols[None, :] < P), other=0.0)


@triton.jit
def _delta(
    delta_ptr, dgate_ptr, out_ptr, out_row, do_ptr, do_row, positional, rows, N, logit, D: tl.constexpr,
):  # fmt: skip
    """delta of a tile of rows of one image, and the tile's sum for the gate."""
    BLOCK_D: tl.constexpr = positional.shape[1]
    do = load_rows(do_ptr, do_row, rows, N, D, BLOCK_D).to(tl.float32)
    out = load_rows(out_ptr, out_row, rows, N, D, BLOCK_D).to(tl.float32)
    from_all, from_weights = tl.sum(do * out, 1), tl.sum(do * positional, 1)
    keep = tl.sigmoid(-logit)
    # A gate shut so hard that 1 - g is 0 leaves the scores without a gradient.
    delta = tl.where(keep > 0.0, (from_all - from_weights) / keep, 0.0)
    tl.store(delta_ptr + rows, delta, mask=rows < N)
    tl.store(dgate_ptr, tl.sum(from_weights - tl.sigmoid(logit) * from_all, 0))


@triton.jit
def _delta_kernel(
    delta_ptr,  # [B, H, N] fp32
    dgate_ptr,  # [B * tiles, H] fp32: sums over each tile of rows
    v_ptr,  # [B, H, N, D]
    weights_ptr,  # [H, N, P]
    gate_ptr,  # [H]
    out_ptr,  # [B, H, N, D]
    do_ptr,  # [B, H, N, D]
    v_stride_b,
    v_stride_h,
    v_stride_n,
    out_stride_b,
    out_stride_h,
    out_stride_n,
    do_stride_b,
    do_stride_h,
    do_stride_n,
    B,
    H,
    N,
    P,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    REST: tl.constexpr,  # keys of a last, shorter block; 0 without one
    IMAGES: tl.constexpr,  # 1 or 2 images share each tile of weights
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    tile, h = pid % tiles, (pid // tiles) % H
    # The last group of images starts early enough to be whole: what two programs compute, both store alike.
    b64 = tl.minimum(pid // (tiles * H) * IMAGES, B - IMAGES).to(tl.int64)
    h64 = tl.cast(h, tl.int64)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    weights_ptr += h64 * N * P
    v_step, v_row = aligned(v_stride_b, ALIGN), aligned(v_stride_n, ALIGN)
    v_ptr += b64 * v_step + h64 * aligned(v_stride_h, ALIGN)
    positional_0 = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    positional_1 = positional_0
    whole = N // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        weights = tl.load(weights_ptr + tl.minimum(rows, N - 1)[:, None] * P + cols[None, :])
        v_0 = load_rows_or_last(v_ptr, v_row, cols, N, D, BLOCK_D)
        positional_0 = tl.dot(weights, v_0, positional_0, input_precision="tf32x3")
        if IMAGES > 1:
            v_1 = load_rows_or_last(v_ptr + v_step, v_row, cols, N, D, BLOCK_D)
            positional_1 = tl.dot(weights, v_1, positional_1, input_precision="tf32x3")
    if REST > 0:
        cols = whole + tl.arange(0, REST)
        weights = load_weights(weights_ptr, N, P, rows, cols)
        v_0 = load_rows_or_last(v_ptr, v_row, cols, N, D, BLOCK_D)
        positional_0 = tl.dot(weights, v_0, positional_0, input_precision="tf32x3")
        if IMAGES > 1:
            v_1 = load_rows_or_last(v_ptr + v_step, v_row, cols, N, D, BLOCK_D)
            positional_1 = tl.dot(weights, v_1, positional_1, input_precision="tf32x3")
    out_step, do_step = aligned(out_stride_b, ALIGN), aligned(do_stride_b, ALIGN)
    out_row, do_row = aligned(out_stride_n, ALIGN), aligned(do_stride_n, ALIGN)
    out_ptr += b64 * out_step + h64 * aligned(out_stride_h, ALIGN)
    do_ptr += b64 * do_step + h64 * aligned(do_stride_h, ALIGN)
    delta_ptr += (b64 * H + h) * N
    dgate_ptr += (b64 * tiles + tile) * H + h
    logit = tl.load(gate_ptr + h).to(tl.float32)
    _delta(delta_ptr, dgate_ptr, out_ptr, out_row, do_ptr, do_row, positional_0, rows, N, logit, D)
    if IMAGES > 1:
        _delta(
            delta_ptr + H * N, dgate_ptr + tiles * H, out_ptr + out_step, out_row, do_ptr + do_step, do_row,
            positional_1, rows, N, logit, D,
        )  # fmt: skip


@triton.jit
def _logits_gradient_kernel(
    dlogits_ptr,  # [H, N, N]
    dp_ptr,  # [H, N, N] fp32: sum over the images of dO v^T
    logits_ptr,  # [H, N, N]
    gate_ptr,  # [H]
    N,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tiles = tl.cdiv(N, BLOCK_N)
    rows = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(0) // tiles
    matrix = tl.cast(head, tl.int64) * N * N
    logits_ptr += matrix
    gate = tl.sigmoid(tl.load(gate_ptr + head).to(tl.float32))
    largest, total = row_softmax(logits_ptr, rows, N, BLOCK_M)
    dots = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, N, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        mask = (rows[:, None] < N) & (cols[None, :] < N)
        dp = tl.load(dp_ptr + matrix + rows[:, None] * N + cols[None, :], mask=mask, other=0.0)
        dots += tl.math.exp2(load_logits(logits_ptr, rows, cols, N) - largest[:, None]) * dp
    mean = (tl.sum(dots, 1) / total)[:, None]
    for start in range(0, N, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        mask = (rows[:, None] < N) & (cols[None, :] < N)
        dp = tl.load(dp_ptr + matrix + rows[:, None] * N + cols[None, :], mask=mask, other=0.0)
        p = tl.math.exp2(load_logits(logits_ptr, rows, cols, N) - largest[:, None]) * (gate / total)[:, None]
        dlogits = (p * (dp - mean)).to(dlogits_ptr.dtype.element_ty)
        tl.store(dlogits_ptr + matrix + rows[:, None] * N + cols[None, :], dlogits, mask=mask)


def gated_backward_calls(
    dq: Tensor, dk: Tensor, dv: Tensor, dpositional: Tensor, dgate: Tensor, q: Tensor, k: Tensor, v: Tensor,
    positional: Tensor, gate: Tensor, weights: Tensor, out: Tensor, lse: Tensor, grad: Tensor, scale: float,
    arch: int,
) -> list[Call]:  # fmt: skip
    """The launches that fill dq, dk, dv (token-major), dpositional (dense) and dgate."""
    B, H, N, D = q.shape
    # Triton 3.7 cannot lower the row sum of a product in tensor memory (sm_100): 32 rows stay out of it.
    tensor_memory = reads_results_from_tensor_memory(arch)
    block_m = 64 if q.element_size() == 2 and not tensor_memory else 32
    tall = tall_tile(q, arch) and not tensor_memory
    block_n, images = (128, min(B, 2)) if tall else (block_m, 1)
    tiles = cdiv(N, block_n)
    delta = lse.new_empty(lse.shape)
    gate_parts = lse.new_empty((B * tiles, H))
    delta_args = {
        "delta_ptr": delta, "dgate_ptr": gate_parts, "v_ptr": v, "weights_ptr": weights, "gate_ptr": gate,
        "out_ptr": out, "do_ptr": grad,
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_n": v.stride(2),
        "out_stride_b": out.stride(0), "out_stride_h": out.stride(1), "out_stride_n": out.stride(2),
        "do_stride_b": grad.stride(0), "do_stride_h": grad.stride(1), "do_stride_n": grad.stride(2),
        "B": B, "H": H, "N": N, "P": weights.shape[2], "ALIGN": stride_alignment(v, out, grad), "D": D,
        "BLOCK_D": padded_head_dim(D), "BLOCK_N": block_n, "BLOCK_M": block_m, "REST": rest_block(N, block_m),
        "IMAGES": images,
    }  # fmt: skip
    parts = lse.new_empty((bias_slices(B, H, N, k.shape[2]), H, N, N))
    dp = parts[0] if parts.shape[0] == 1 else lse.new_empty((H, N, N))
    logits_args = {
        "dlogits_ptr": dpositional, "dp_ptr": dp, "logits_ptr": positional, "gate_ptr": gate,
        "N": N, "BLOCK_N": 16, "BLOCK_M": 128,
    }  # fmt: skip
    return [
        Call(kernel=_delta_kernel, args=delta_args, grid=tiles * H * cdiv(B, images), pass_name="bwd_delta",
             products=1, num_warps=8 if tall else 4, num_stages=1),
        sum_parts_call(dgate, gate_parts, "bwd_sum_dgate"),
        *backward_calls(
            dq, dk, dv, parts, delta, q, k, v, weights, out, lse, grad, scale, arch, expanded=True, gated=True
        ),
        *([sum_parts_call(dp, parts, "bwd_sum_dp")] if parts.shape[0] > 1 else []),
        Call(kernel=_logits_gradient_kernel, args=logits_args, grid=H * cdiv(N, 16), pass_name="bwd_logits"),
    ]  # fmt: skip
