"""Forward where the bias of all keys fits on chip: it stands still and the images move past it.

A program owns a tile of queries of one head, holds the bias of all keys in up to three power-of-two pieces (196 padded:
128 + 64 + 16) and walks through a group of images. Where the last tile has at most 16 queries, its four warps take four
images at once, a warp each, instead of sharing 64 rows that are mostly padding.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.attention.forward.softmax import absorb, finish
from vitkernels.attention.tiles import aligned, exponential, load_bias, load_rows_or_last, row_step
from vitkernels.runtime.constants import LOWEST
from vitkernels.runtime.device import reads_operands_from_registers


@triton.jit
def _load_images(ptr, step, row, images, B, rows, n_rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[I, R, BLOCK_D]: the same rows of several images; the last image beyond B, the last row beyond n_rows."""
    offs_d = tl.arange(0, BLOCK_D)
    at = tl.minimum(images, B - 1).to(tl.int64)[:, None, None] * step
    pointers = ptr + at + (tl.minimum(rows, n_rows - 1) * row)[None, :, None] + offs_d[None, None, :]
    if D == BLOCK_D:
        return tl.load(pointers)
    return tl.load(pointers, mask=(offs_d < D)[None, None, :], other=0.0)


@triton.jit
def _absorb_few_rows(
    q, top, total, acc, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr, bias_row, rows, images, b_end, keys, N, M,
    score_scale, EXPANDED: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """`absorb` for 16 rows of four images: q [4, 16, BLOCK_D]; one bias tile serves all images."""
    BLOCK_D: tl.constexpr = q.shape[2]
    k = _load_images(k_ptr, k_step, k_row, images, b_end, keys, M, D, BLOCK_D)
    bias = load_bias(bias_ptr, bias_row, rows, N, keys, M, EXPANDED)
    s = tl.dot(q, tl.permute(k, (0, 2, 1))) * score_scale + bias[None, :, :]
    new_top = tl.maximum(top, tl.max(s, 2))
    shrink = exponential(top - new_top, EXPANDED)[:, :, None]
    p = exponential(s - new_top[:, :, None], EXPANDED).to(q.dtype)
    v = _load_images(v_ptr, v_step, v_row, images, b_end, keys, M, D, BLOCK_D)
    total = tl.dot(p, tl.full([4, p.shape[2], 8], 1.0, p.dtype), total * shrink)
    return new_top, total, tl.dot(p, v, acc * shrink)


@triton.jit
def _fwd_tail(
    out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr,
    bias_row, rows, b_first, b_end, h, H, N, M, score_scale, EXPANDED: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The last few queries of each image: 16 rows for a warp and image, four images at once, instead of 64 rows."""
    offs_d = tl.arange(0, BLOCK_D)
    whole = M // BLOCK_M * BLOCK_M
    for b in range(b_first, b_end, 4):
        images = b + tl.arange(0, 4)
        q = _load_images(q_ptr, q_step, q_row, images, b_end, rows, N, D, BLOCK_D)
        top = tl.full([4, 16], LOWEST, tl.float32)
        total = tl.zeros([4, 16, 8], tl.float32)
        acc = tl.zeros([4, 16, BLOCK_D], tl.float32)
        for start in range(0, whole, BLOCK_M):
            top, total, acc = _absorb_few_rows(
                q, top, total, acc, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr, bias_row, rows, images,
                b_end, start + tl.arange(0, BLOCK_M), N, M, score_scale, EXPANDED, D,
            )  # fmt: skip
        for start in range(whole, M, 16):
            top, total, acc = _absorb_few_rows(
                q, top, total, acc, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr, bias_row, rows, images,
                b_end, start + tl.arange(0, 16), N, M, score_scale, EXPANDED, D,
            )  # fmt: skip
        denominator = tl.max(total, 2)
        mask = (images < b_end)[:, None] & (rows < N)[None, :]
        at = images.to(tl.int64)[:, None, None] * out_step + (rows * out_row)[None, :, None] + offs_d[None, None, :]
        out = (acc * (1.0 / denominator)[:, :, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at, out, mask=mask[:, :, None] & (offs_d < D)[None, None, :])
        if lse_ptr is not None:
            image_head = images.to(tl.int64)[:, None] * H + h
            if EXPANDED:
                tl.store(lse_ptr + image_head * N + rows[None, :], top + tl.math.log2(denominator), mask=mask)
            else:
                at_lse = lse_ptr + image_head * (2 * N) + rows[None, :]
                tl.store(at_lse, top, mask=mask)
                tl.store(at_lse + N, tl.math.log2(denominator), mask=mask)


@triton.jit
def _fwd_tile(
    out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr,
    bias_row, rows, b_first, b_end, h, H, N, M, score_scale, EXPANDED: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, KEYS_0: tl.constexpr, KEYS_1: tl.constexpr, KEYS_2: tl.constexpr,
):  # fmt: skip
    """A tile of queries of images b_first to b_end: bias of all keys stays in registers."""
    keys_0 = tl.arange(0, KEYS_0)
    bias_0 = load_bias(bias_ptr, bias_row, rows, N, keys_0, M, EXPANDED)  # [R, KEYS_0]
    if KEYS_1 > 0:
        keys_1 = KEYS_0 + tl.arange(0, KEYS_1)
        bias_1 = load_bias(bias_ptr, bias_row, rows, N, keys_1, M, EXPANDED)
    if KEYS_2 > 0:
        keys_2 = KEYS_0 + KEYS_1 + tl.arange(0, KEYS_2)
        bias_2 = load_bias(bias_ptr, bias_row, rows, N, keys_2, M, EXPANDED)
    R: tl.constexpr = rows.shape[0]
    for b in range(b_first, b_end):
        b64 = tl.cast(b, tl.int64)
        k_b, v_b = k_ptr + b64 * k_step, v_ptr + b64 * v_step
        q = load_rows_or_last(q_ptr + b64 * q_step, q_row, rows, N, D, BLOCK_D)
        top = tl.full([R], LOWEST, tl.float32)
        total = tl.zeros([R, 8], tl.float32)
        acc = tl.zeros([R, BLOCK_D], tl.float32)
        top, total, acc = absorb(
            q, k_b, k_row, v_b, v_row, bias_0, keys_0, M, score_scale, top, total, acc, D, EXPANDED, True
        )
        if KEYS_1 > 0:
            top, total, acc = absorb(
                q, k_b, k_row, v_b, v_row, bias_1, keys_1, M, score_scale, top, total, acc, D, EXPANDED, False
            )
        if KEYS_2 > 0:
            top, total, acc = absorb(
                q, k_b, k_row, v_b, v_row, bias_2, keys_2, M, score_scale, top, total, acc, D, EXPANDED, False
            )
        finish(out_ptr + b64 * out_step, out_row, lse_ptr, b64 * H + h, rows, N, top, total, acc, D, EXPANDED)


@triton.jit
def bias_held_kernel(
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
    IMAGES,  # images of one program
    score_scale,
    EXPANDED: tl.constexpr,  # the bias is padded to whole pieces; it and scores are in units of log2
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEYS_0: tl.constexpr,
    KEYS_1: tl.constexpr,
    KEYS_2: tl.constexpr,
    TAIL: tl.constexpr,  # the last tile has at most 16 queries
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    tile, h = pid % tiles, (pid // tiles) % H
    b_first = pid // (tiles * H) * IMAGES
    b_end = min(b_first + IMAGES, B)
    h64 = tl.cast(h, tl.int64)
    bias_ptr += h64 * bias_stride_h
    q_ptr += h64 * aligned(q_stride_h, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN)
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    out_step, out_row = aligned(out_stride_b, ALIGN), aligned(out_stride_n, ALIGN)
    bias_row = row_step(bias_stride_n, ALIGN)
    if TAIL and tile == tiles - 1:
        _fwd_tail(
            out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row,
            bias_ptr, bias_row, tile * BLOCK_N + tl.arange(0, 16), b_first, b_end, h, H, N, M, score_scale,
            EXPANDED, D, BLOCK_D, 64,
        )  # fmt: skip
    else:
        _fwd_tile(
            out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row,
            bias_ptr, bias_row, tile * BLOCK_N + tl.arange(0, BLOCK_N), b_first, b_end, h, H, N, M,
            score_scale, EXPANDED, D, BLOCK_D, KEYS_0, KEYS_1, KEYS_2,
        )  # fmt: skip


def short_limit(head_dim: int, itemsize: int, arch: int) -> int:
    """Most keys that this kernel takes: bias and scores of a whole row are in registers."""
    if itemsize == 4:
        return 0
    if reads_operands_from_registers(arch):
        return 64 if head_dim <= 64 else 0
    return 208 if head_dim <= 32 else 128
