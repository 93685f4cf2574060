"""Gradients of gated_attention around the passes over scores that backward/ makes.

`_delta_kernel` finds delta of every row; `_logits_gradient_kernel` takes the summed gradient of the positional softmax
through that softmax, once for all images. Both leave partial sums of the gate's gradient, which are added in a fixed
order: no atomics here either, so that results repeat bit for bit.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention.backward.plan import backward_calls, bias_parts, key_block
from vitkernels.attention.blocks import padded_head_dim, rest_block, stride_alignment, tall_tile
from vitkernels.attention.tiles import aligned, load_rows_or_last, sum_rows
from vitkernels.runtime.call import Call, cdiv, sum_parts_call
from vitkernels.runtime.constants import LOG2E, LOWEST, OUTSIDE, TABLE
from vitkernels.runtime.device import reads_results_from_tensor_memory


@triton.jit
def load_logits(ptr, rows, cols, N):
    """[R, K] fp32 tile of logits, -inf outside."""
    mask = (rows[:, None] < N) & (cols[None, :] < N)
    return tl.load(ptr + rows[:, None] * N + cols[None, :], mask=mask, other=OUTSIDE).to(tl.float32)


@triton.jit
def row_softmax(ptr, rows, N, BLOCK: tl.constexpr):
    """Largest logit [R] of rows, and sum [R] of exp(logit - largest)."""
    R: tl.constexpr = rows.shape[0]
    top = tl.full([R, BLOCK], LOWEST, tl.float32)
    for start in range(0, N, BLOCK):
        top = tl.maximum(top, load_logits(ptr, rows, start + tl.arange(0, BLOCK), N))
    largest = tl.max(top, 1)
    total = tl.zeros([R, BLOCK], tl.float32)
    for start in range(0, N, BLOCK):
        total += tl.exp(load_logits(ptr, rows, start + tl.arange(0, BLOCK), N) - largest[:, None])
    return largest, tl.sum(total, 1)


@triton.jit
def load_weights(ptr, N, P, rows, cols):
    """[R, K] tile of W [N, P] in its own dtype, zero outside."""
    return tl.load(ptr + rows[:, None] * P + cols[None, :], mask=(rows[:, None] < N) & (cols[None, :] < P), other=0.0)


@triton.jit
def _content_gradient(q, do, lse, k_ptr, k_row, v_ptr, v_row, keys, N, scale_log2, MASKED: tl.constexpr,
                      D: tl.constexpr):  # fmt: skip
    """(1 - g) softmax(S) * dP [R, K] of one block of keys, in fp32."""
    k = load_rows_or_last(k_ptr, k_row, keys, N, D, q.shape[1])
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale_log2
    if MASKED:
        s = tl.where(keys[None, :] < N, s, OUTSIDE)
    v = load_rows_or_last(v_ptr, v_row, keys, N, D, q.shape[1])
    return tl.math.exp2(s - lse[:, None]) * tl.dot(do, tl.trans(v), input_precision="tf32x3")


@triton.jit
def _row_sums(x, BY_PRODUCT: tl.constexpr):
    if BY_PRODUCT:
        return tl.max(sum_rows(x, tl.zeros([x.shape[0], 8], tl.float32)), 1)
    return tl.sum(x, 1)


@triton.jit
def _delta_kernel(
    delta_ptr,  # [B, H, N] fp32
    dgate_ptr,  # [B * tiles, H] fp32: what each tile of rows subtracts
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, N, D]
    v_ptr,  # [B, H, N, D]
    gate_ptr,  # [H]
    do_ptr,  # [B, H, N, D]
    lse_ptr,  # [B, H, N] log2(denominators / (1 - g))
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    do_stride_b,
    do_stride_h,
    do_stride_n,
    H,
    N,
    scale_log2,
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    REST: tl.constexpr,  # keys of a last, shorter block; 0 without one
    BY_PRODUCT: tl.constexpr,  # sum rows by a matrix product
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    tile, h, b = pid % tiles, (pid // tiles) % H, pid // (tiles * H)
    h64, b64 = h.to(tl.int64), b.to(tl.int64)
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b64 * aligned(q_stride_b, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b64 * aligned(k_stride_b, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b64 * aligned(v_stride_b, ALIGN)
    do_ptr += h64 * aligned(do_stride_h, ALIGN) + b64 * aligned(do_stride_b, ALIGN)
    k_row, v_row = aligned(k_stride_n, ALIGN), aligned(v_stride_n, ALIGN)
    at = (b64 * H + h) * N
    logit = tl.load(gate_ptr + h).to(tl.float32)
    keep = tl.sigmoid(-logit)
    q = load_rows_or_last(q_ptr, aligned(q_stride_n, ALIGN), rows, N, D, BLOCK_D)
    do = load_rows_or_last(do_ptr, aligned(do_stride_n, ALIGN), rows, N, D, BLOCK_D)
    lse = tl.load(lse_ptr + at + tl.minimum(rows, N - 1))
    whole = N // BLOCK_M * BLOCK_M
    dots = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, whole, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        dots += _content_gradient(q, do, lse, k_ptr, k_row, v_ptr, v_row, keys, N, scale_log2, False, D)
    delta = _row_sums(dots, BY_PRODUCT)
    if REST > 0:
        keys = whole + tl.arange(0, REST)
        dots = _content_gradient(q, do, lse, k_ptr, k_row, v_ptr, v_row, keys, N, scale_log2, True, D)
        delta += _row_sums(dots, BY_PRODUCT)
    # A gate shut so hard that 1 - g is 0 leaves the scores without a gradient.
    delta = tl.where(keep > 0.0, delta / keep, 0.0)
    tl.store(delta_ptr + at + rows, delta, mask=rows < N)
    from_rows = tl.sum(tl.where(rows < N, delta, 0.0), 0)
    tl.store(dgate_ptr + (b64 * tiles + tile) * H + h, -tl.sigmoid(logit) * keep * from_rows)


@triton.jit
def _logits_gradient_kernel(
    dlogits_ptr,  # [H, N, N]
    dgate_ptr,  # [tiles, H] fp32: what each tile of rows adds
    dp_ptr,  # [H, N, N] fp32: sum over the images of dO v^T
    logits_ptr,  # [H, N, N]
    gate_ptr,  # [H]
    H,
    N,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tiles = tl.cdiv(N, BLOCK_N)
    rows = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(0) // tiles
    matrix = tl.cast(head, tl.int64) * N * N
    logits_ptr += matrix
    logit = tl.load(gate_ptr + head).to(tl.float32)
    gate = tl.sigmoid(logit)
    largest, total = row_softmax(logits_ptr, rows, N, BLOCK_M)
    dots = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, N, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        mask = (rows[:, None] < N) & (cols[None, :] < N)
        dp = tl.load(dp_ptr + matrix + rows[:, None] * N + cols[None, :], mask=mask, other=0.0)
        dots += tl.exp(load_logits(logits_ptr, rows, cols, N) - largest[:, None]) * dp
    mean = (tl.sum(dots, 1) / total)[:, None]
    from_rows = tl.sum(tl.where(rows[:, None] < N, mean, 0.0))
    tl.store(dgate_ptr + tl.program_id(0) % tiles * H + head, gate * tl.sigmoid(-logit) * from_rows)
    for start in range(0, N, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        mask = (rows[:, None] < N) & (cols[None, :] < N)
        dp = tl.load(dp_ptr + matrix + rows[:, None] * N + cols[None, :], mask=mask, other=0.0)
        p = tl.exp(load_logits(logits_ptr, rows, cols, N) - largest[:, None]) * (gate / total)[:, None]
        dlogits = (p * (dp - mean)).to(dlogits_ptr.dtype.element_ty)
        tl.store(dlogits_ptr + matrix + rows[:, None] * N + cols[None, :], dlogits, mask=mask)


def gated_backward_calls(
    dq: Tensor, dk: Tensor, dv: Tensor, dpositional: Tensor, dgate: Tensor, q: Tensor, k: Tensor, v: Tensor,
    positional: Tensor, gate: Tensor, weights: Tensor, out: Tensor, lse: Tensor, grad: Tensor, scale: float,
    arch: int,
) -> list[Call]:  # fmt: skip
    """The launches that fill dq, dk, dv (token-major), dpositional (dense) and dgate."""
    B, H, N, D = q.shape
    block_m = key_block(D, q.element_size(), arch)
    tall = tall_tile(q, arch)
    block_n = 128 if tall else 64 if q.element_size() == 2 else 32 if D <= 64 else 16
    tiles = cdiv(N, block_n)
    delta = lse.new_empty(lse.shape)
    gate_parts = lse.new_empty((B * tiles + cdiv(N, 16), H))
    delta_args = {
        "delta_ptr": delta, "dgate_ptr": gate_parts[: B * tiles], "q_ptr": q, "k_ptr": k, "v_ptr": v, "gate_ptr": gate,
        "do_ptr": grad, "lse_ptr": lse,
        "q_stride_b": q.stride(0), "q_stride_h": q.stride(1), "q_stride_n": q.stride(2),
        "k_stride_b": k.stride(0), "k_stride_h": k.stride(1), "k_stride_n": k.stride(2),
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_n": v.stride(2),
        "do_stride_b": grad.stride(0), "do_stride_h": grad.stride(1), "do_stride_n": grad.stride(2),
        "H": H, "N": N, "scale_log2": scale * LOG2E.value, "ALIGN": stride_alignment(q, k, v, grad), "D": D,
        "BLOCK_D": padded_head_dim(D), "BLOCK_N": block_n, "BLOCK_M": block_m, "REST": rest_block(N, block_m),
        # Triton 3.7 cannot lower tl.sum over what comes out of tensor memory.
        "BY_PRODUCT": reads_results_from_tensor_memory(arch),
    }  # fmt: skip
    parts = bias_parts(q, k.shape[2], arch, gated=True)
    dp = parts[0] if parts.shape[0] == 1 else lse.new_empty((H, N, N))
    logits_args = {
        "dlogits_ptr": dpositional, "dgate_ptr": gate_parts[B * tiles :], "dp_ptr": dp, "logits_ptr": positional,
        "gate_ptr": gate, "H": H, "N": N, "BLOCK_N": 16, "BLOCK_M": 128,
    }  # fmt: skip
    return [
        Call(kernel=_delta_kernel, args=delta_args, grid=tiles * H * B, pass_name="bwd_delta", products=2,
             scores=B * H * N * N, num_warps=8 if tall else 4, num_stages=1),
        *backward_calls(
            dq, dk, dv, parts, delta, q, k, v, weights, out, lse, grad, scale, arch, expanded=TABLE.value, gated=True
        ),
        *([sum_parts_call(dp, parts, "bwd_sum_dp")] if parts.shape[0] > 1 else []),
        Call(kernel=_logits_gradient_kernel, args=logits_args, grid=H * cdiv(N, 16), pass_name="bwd_logits"),
        sum_parts_call(dgate, gate_parts, "bwd_sum_dgate"),
    ]  # fmt: skip
