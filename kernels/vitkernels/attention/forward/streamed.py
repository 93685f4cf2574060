"""Forward for any number of keys: a loop over blocks of keys, in which up to three images share each block of bias."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.attention.forward.softmax import absorb, finish
from vitkernels.attention.tiles import aligned, load_bias, load_bias_inside, load_rows_or_last, row_step
from vitkernels.runtime.constants import LOWEST
from vitkernels.runtime.device import reads_operands_from_registers


@triton.jit
def _long_tile(
    out_ptr, out_step, out_row, lse_ptr, image_head, H, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step,
    v_row, bias_ptr, bias_row, rows, N, M, score_scale, EXPANDED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, REST: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """A tile of queries of up to three images: each block of bias serves all of them."""
    R: tl.constexpr = rows.shape[0]
    q_0 = load_rows_or_last(q_ptr, q_row, rows, N, D, BLOCK_D)
    top_0 = tl.full([R], LOWEST, tl.float32)
    total_0 = tl.zeros([R, 8], tl.float32)
    acc_0 = tl.zeros([R, BLOCK_D], tl.float32)
    if IMAGES > 1:
        q_1 = load_rows_or_last(q_ptr + q_step, q_row, rows, N, D, BLOCK_D)
        top_1, total_1, acc_1 = top_0, total_0, acc_0
    if IMAGES > 2:
        q_2 = load_rows_or_last(q_ptr + 2 * q_step, q_row, rows, N, D, BLOCK_D)
        top_2, total_2, acc_2 = top_0, total_0, acc_0
    whole = M // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        bias = load_bias_inside(bias_ptr, bias_row, rows, N, keys, EXPANDED)
        top_0, total_0, acc_0 = absorb(
            q_0, k_ptr, k_row, v_ptr, v_row, bias, keys, M, score_scale, top_0, total_0, acc_0, D, EXPANDED, False
        )
        if IMAGES > 1:
            top_1, total_1, acc_1 = absorb(
                q_1, k_ptr + k_step, k_row, v_ptr + v_step, v_row, bias, keys, M, score_scale,
                top_1, total_1, acc_1, D, EXPANDED, False,
            )  # fmt: skip
        if IMAGES > 2:
            top_2, total_2, acc_2 = absorb(
                q_2, k_ptr + 2 * k_step, k_row, v_ptr + 2 * v_step, v_row, bias, keys, M, score_scale,
                top_2, total_2, acc_2, D, EXPANDED, False,
            )  # fmt: skip
    if REST > 0:
        keys = whole + tl.arange(0, REST)
        bias = load_bias(bias_ptr, bias_row, rows, N, keys, M, EXPANDED)
        top_0, total_0, acc_0 = absorb(
            q_0, k_ptr, k_row, v_ptr, v_row, bias, keys, M, score_scale, top_0, total_0, acc_0, D, EXPANDED, False
        )
        if IMAGES > 1:
            top_1, total_1, acc_1 = absorb(
                q_1, k_ptr + k_step, k_row, v_ptr + v_step, v_row, bias, keys, M, score_scale,
                top_1, total_1, acc_1, D, EXPANDED, False,
            )  # fmt: skip
        if IMAGES > 2:
            top_2, total_2, acc_2 = absorb(
                q_2, k_ptr + 2 * k_step, k_row, v_ptr + 2 * v_step, v_row, bias, keys, M, score_scale,
                top_2, total_2, acc_2, D, EXPANDED, False,
            )  # fmt: skip
    finish(out_ptr, out_row, lse_ptr, image_head, rows, N, top_0, total_0, acc_0, D, EXPANDED)
    if IMAGES > 1:
        finish(out_ptr + out_step, out_row, lse_ptr, image_head + H, rows, N, top_1, total_1, acc_1, D, EXPANDED)
    if IMAGES > 2:
        finish(
            out_ptr + 2 * out_step, out_row, lse_ptr, image_head + 2 * H, rows, N, top_2, total_2, acc_2, D, EXPANDED
        )  # fmt: skip


@triton.jit
def _long_rows(
    out_ptr, out_step, out_row, lse_ptr, image_head, H, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step,
    v_row, bias_ptr, bias_row, tile, tiles, N, M, score_scale, EXPANDED: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, REST: tl.constexpr, LAST: tl.constexpr,
    IMAGES: tl.constexpr,
):  # fmt: skip
    """`_long_tile`, with fewer rows where the last tile has fewer."""
    if LAST < BLOCK_N and tile == tiles - 1:
        _long_tile(
            out_ptr, out_step, out_row, lse_ptr, image_head, H, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, bias_ptr, bias_row, tile * BLOCK_N + tl.arange(0, LAST), N, M, score_scale, EXPANDED, D,
            BLOCK_D, BLOCK_M, REST, IMAGES,
        )  # fmt: skip
    else:
        _long_tile(
            out_ptr, out_step, out_row, lse_ptr, image_head, H, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, bias_ptr, bias_row, tile * BLOCK_N + tl.arange(0, BLOCK_N), N, M, score_scale, EXPANDED, D,
            BLOCK_D, BLOCK_M, REST, IMAGES,
        )  # fmt: skip


@triton.jit
def _image_step(stride, ALIGN: tl.constexpr):
    """64-bit, as two images may be more than 2^31 elements apart."""
    return tl.cast(aligned(stride, ALIGN), tl.int64)


@triton.jit
def streamed_kernel(
    out_ptr,  # [B, H, N, D]
    lse_ptr,  # as `store_lse` fills it, or None
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, M, D]
    v_ptr,  # [B, H, M, D]
    bias_ptr,  # [H, N, M]
    out_stride_b,
    out_stride_h,
    out_stride_n,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_m,
    v_stride_b,
    v_stride_h,
    v_stride_m,
    bias_stride_h,
    bias_stride_n,
    B,
    H,
    N,
    M,
    score_scale,
    EXPANDED: tl.constexpr,  # the bias is padded to a multiple of 16 keys; it and scores are in units of log2
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    REST: tl.constexpr,  # keys of a last, shorter block; 0 without one
    IMAGES: tl.constexpr,  # 1, 2 or 3 images share each bias tile
    SHORT: tl.constexpr,  # images of the last group, where it has fewer
    LAST: tl.constexpr,  # queries of the last tile
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    tile, h = pid % tiles, (pid // tiles) % H
    b = (pid // (tiles * H) * IMAGES).to(tl.int64)
    h64 = h.to(tl.int64)
    bias_ptr += h64 * bias_stride_h
    q_step = _image_step(q_stride_b, ALIGN)
    k_step, v_step = _image_step(k_stride_b, ALIGN), _image_step(v_stride_b, ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b * q_step
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b * k_step
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b * v_step
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    out_step, out_row = _image_step(out_stride_b, ALIGN), aligned(out_stride_n, ALIGN)
    bias_row = row_step(bias_stride_n, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN) + b * out_step
    image_head = b * H + h
    if SHORT > 0 and b + IMAGES > B:
        _long_rows(
            out_ptr, out_step, out_row, lse_ptr, image_head, H, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, bias_ptr, bias_row, tile, tiles, N, M, score_scale, EXPANDED, D, BLOCK_D, BLOCK_N,
            BLOCK_M, REST, LAST, SHORT,
        )  # fmt: skip
    else:
        _long_rows(
            out_ptr, out_step, out_row, lse_ptr, image_head, H, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, bias_ptr, bias_row, tile, tiles, N, M, score_scale, EXPANDED, D, BLOCK_D, BLOCK_N,
            BLOCK_M, REST, LAST, IMAGES,
        )  # fmt: skip


def long_images(head_dim: int, itemsize: int, arch: int) -> int:
    """How many images share each bias tile in the streamed kernel: what the registers hold."""
    if itemsize == 4 or head_dim > 64:
        return 1
    return (3 if head_dim <= 32 else 2) - reads_operands_from_registers(arch)
