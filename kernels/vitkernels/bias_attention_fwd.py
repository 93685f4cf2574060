"""Forward kernels of bias_attention, of relative_attention and of whoever else brings a dense bias.

The bias does not depend on the image, so it stands still and the images move. `_fwd_short_kernel`: a program owns a
tile of queries of one head, holds the bias of all keys in up to three power-of-two pieces (196 padded: 128 + 64 + 16)
and walks through a group of images; a last tile of at most 16 queries gets one warp for each image instead of four.
`_fwd_long_kernel`: blocks of keys outside, up to three images inside each. Everything is in units of log2, since the
hardware has exp2. Row sums come from the matrix unit: p is multiplied by ones while it sits in registers.

num_stages is 1: with copies in flight the addresses of a second stage spill.
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
    has_tail,
    images_in_one_wave,
    images_per_program,
    last_tile,
    load_bias,
    load_bias_inside,
    load_rows_or_last,
    padded_head_dim,
    pieces,
    reads_operands_from_registers,
    reads_results_from_tensor_memory,
    rest_block,
    store_rows,
    stride_alignment,
    sum_rows,
    tall_tile,
    tallest_tile,
)
from vitkernels.bias_attention_fwd_few_keys import few_keys, few_keys_calls


@triton.jit
def _absorb(q, k_ptr, k_row, v_ptr, v_row, bias, keys, n_keys, scale_log2, top, total, acc, D: tl.constexpr,
            FIRST: tl.constexpr):  # fmt: skip
    """One block of keys into the running softmax (top [R], total [R, 8], acc [R, BLOCK_D]) of one image.

    FIRST: nothing is in it yet, so nothing is rescaled.
    """
    BLOCK_D: tl.constexpr = q.shape[1]
    s = tl.dot(q, tl.trans(load_rows_or_last(k_ptr, k_row, keys, n_keys, D, BLOCK_D)), input_precision="tf32x3")
    s = s * scale_log2 + bias
    new_top = tl.maximum(top, tl.max(s, 1))  # finite, also where all of these keys are masked with -inf
    if not FIRST:
        shrink = tl.math.exp2(top - new_top)[:, None]
        acc, total = acc * shrink, total * shrink
    p = tl.math.exp2(s - new_top[:, None]).to(q.dtype)
    v = load_rows_or_last(v_ptr, v_row, keys, n_keys, D, BLOCK_D)
    return new_top, sum_rows(p, total), tl.dot(p, v, acc, input_precision="tf32x3")


@triton.jit
def _finish(out_ptr, out_row, lse_ptr, lse_at, rows, n_rows, top, total, acc, D: tl.constexpr):
    denominator = tl.max(total, 1)
    store_rows(out_ptr, out_row, acc * (1.0 / denominator)[:, None], rows, n_rows, D, acc.shape[1])
    if lse_ptr is not None:
        tl.store(lse_ptr + lse_at + rows, top + tl.math.log2(denominator), mask=rows < n_rows)


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
    scale_log2, EXPANDED: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """`_absorb` for 16 rows of four images: q [4, 16, BLOCK_D]; one bias tile serves all images."""
    BLOCK_D: tl.constexpr = q.shape[2]
    k = _load_images(k_ptr, k_step, k_row, images, b_end, keys, M, D, BLOCK_D)
    bias = load_bias(bias_ptr, bias_row, rows, N, keys, M, EXPANDED)
    s = tl.dot(q, tl.permute(k, (0, 2, 1))) * scale_log2 + bias[None, :, :]
    new_top = tl.maximum(top, tl.max(s, 2))
    shrink = tl.math.exp2(top - new_top)[:, :, None]
    p = tl.math.exp2(s - new_top[:, :, None]).to(q.dtype)
    v = _load_images(v_ptr, v_step, v_row, images, b_end, keys, M, D, BLOCK_D)
    total = tl.dot(p, tl.full([4, p.shape[2], 8], 1.0, p.dtype), total * shrink)
    return new_top, total, tl.dot(p, v, acc * shrink)


@triton.jit
def _fwd_tail(
    out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr,
    bias_row, rows, b_first, b_end, h, H, N, M, scale_log2, EXPANDED: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The last few queries of each image: 16 rows for a warp and image, four images at once, instead of 64 rows."""
    offs_d = tl.arange(0, BLOCK_D)
    whole = M // BLOCK_M * BLOCK_M
    for b in range(b_first, b_end, 4):
        images = b + tl.arange(0, 4)
        q = _load_images(q_ptr, q_step, q_row, images, b_end, rows, N, D, BLOCK_D)
        top = tl.full([4, 16], -3.0e38, tl.float32)
        total = tl.zeros([4, 16, 8], tl.float32)
        acc = tl.zeros([4, 16, BLOCK_D], tl.float32)
        for start in range(0, whole, BLOCK_M):
            top, total, acc = _absorb_few_rows(
                q, top, total, acc, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr, bias_row, rows, images,
                b_end, start + tl.arange(0, BLOCK_M), N, M, scale_log2, EXPANDED, D,
            )  # fmt: skip
        for start in range(whole, M, 16):
            top, total, acc = _absorb_few_rows(
                q, top, total, acc, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr, bias_row, rows, images,
                b_end, start + tl.arange(0, 16), N, M, scale_log2, EXPANDED, D,
            )  # fmt: skip
        denominator = tl.max(total, 2)
        mask = (images < b_end)[:, None] & (rows < N)[None, :]
        at = images.to(tl.int64)[:, None, None] * out_step + (rows * out_row)[None, :, None] + offs_d[None, None, :]
        out = (acc * (1.0 / denominator)[:, :, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at, out, mask=mask[:, :, None] & (offs_d < D)[None, None, :])
        if lse_ptr is not None:
            at_lse = (images.to(tl.int64)[:, None] * H + h) * N + rows[None, :]
            tl.store(lse_ptr + at_lse, top + tl.math.log2(denominator), mask=mask)


@triton.jit
def _fwd_tile(
    out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr,
    bias_row, rows, b_first, b_end, h, H, N, M, scale_log2, EXPANDED: tl.constexpr, D: tl.constexpr,
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
        top = tl.full([R], -3.0e38, tl.float32)
        total = tl.zeros([R, 8], tl.float32)
        acc = tl.zeros([R, BLOCK_D], tl.float32)
        top, total, acc = _absorb(q, k_b, k_row, v_b, v_row, bias_0, keys_0, M, scale_log2, top, total, acc, D, True)
        if KEYS_1 > 0:
            top, total, acc = _absorb(
                q, k_b, k_row, v_b, v_row, bias_1, keys_1, M, scale_log2, top, total, acc, D, False
            )
        if KEYS_2 > 0:
            top, total, acc = _absorb(
                q, k_b, k_row, v_b, v_row, bias_2, keys_2, M, scale_log2, top, total, acc, D, False
            )
        _finish(out_ptr + b64 * out_step, out_row, lse_ptr, (b64 * H + h) * N, rows, N, top, total, acc, D)


@triton.jit
def _fwd_short_kernel(
    out_ptr,  # [B, H, N, D]
    lse_ptr,  # [B, H, N] log2 of the softmax denominators, or None
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
    scale_log2,
    EXPANDED: tl.constexpr,  # the bias is padded to whole pieces and in units of log2
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
    if TAIL and tile == tiles - 1:
        _fwd_tail(
            out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row,
            bias_ptr, bias_stride_n, tile * BLOCK_N + tl.arange(0, 16), b_first, b_end, h, H, N, M, scale_log2,
            EXPANDED, D, BLOCK_D, 64,
        )  # fmt: skip
    else:
        _fwd_tile(
            out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row,
            bias_ptr, bias_stride_n, tile * BLOCK_N + tl.arange(0, BLOCK_N), b_first, b_end, h, H, N, M,
            scale_log2, EXPANDED, D, BLOCK_D, KEYS_0, KEYS_1, KEYS_2,
        )  # fmt: skip


@triton.jit
def _long_tile(
    out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step,
    v_row, bias_ptr, bias_row, rows, N, M, scale_log2, EXPANDED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, REST: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """A tile of queries of up to three images: each block of bias serves all of them."""
    R: tl.constexpr = rows.shape[0]
    q_0 = load_rows_or_last(q_ptr, q_row, rows, N, D, BLOCK_D)
    top_0 = tl.full([R], -3.0e38, tl.float32)
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
        top_0, total_0, acc_0 = _absorb(
            q_0, k_ptr, k_row, v_ptr, v_row, bias, keys, M, scale_log2, top_0, total_0, acc_0, D, False
        )
        if IMAGES > 1:
            top_1, total_1, acc_1 = _absorb(
                q_1, k_ptr + k_step, k_row, v_ptr + v_step, v_row, bias, keys, M, scale_log2,
                top_1, total_1, acc_1, D, False,
            )  # fmt: skip
        if IMAGES > 2:
            top_2, total_2, acc_2 = _absorb(
                q_2, k_ptr + 2 * k_step, k_row, v_ptr + 2 * v_step, v_row, bias, keys, M, scale_log2,
                top_2, total_2, acc_2, D, False,
            )  # fmt: skip
    if REST > 0:
        keys = whole + tl.arange(0, REST)
        bias = load_bias(bias_ptr, bias_row, rows, N, keys, M, EXPANDED)
        top_0, total_0, acc_0 = _absorb(
            q_0, k_ptr, k_row, v_ptr, v_row, bias, keys, M, scale_log2, top_0, total_0, acc_0, D, False
        )
        if IMAGES > 1:
            top_1, total_1, acc_1 = _absorb(
                q_1, k_ptr + k_step, k_row, v_ptr + v_step, v_row, bias, keys, M, scale_log2,
                top_1, total_1, acc_1, D, False,
            )  # fmt: skip
        if IMAGES > 2:
            top_2, total_2, acc_2 = _absorb(
                q_2, k_ptr + 2 * k_step, k_row, v_ptr + 2 * v_step, v_row, bias, keys, M, scale_log2,
                top_2, total_2, acc_2, D, False,
            )  # fmt: skip
    _finish(out_ptr, out_row, lse_ptr, lse_at, rows, N, top_0, total_0, acc_0, D)
    if IMAGES > 1:
        _finish(out_ptr + out_step, out_row, lse_ptr, lse_at + lse_step, rows, N, top_1, total_1, acc_1, D)
    if IMAGES > 2:
        _finish(out_ptr + 2 * out_step, out_row, lse_ptr, lse_at + 2 * lse_step, rows, N, top_2, total_2, acc_2, D)


@triton.jit
def _long_rows(
    out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step,
    v_row, bias_ptr, bias_row, tile, tiles, N, M, scale_log2, EXPANDED: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, REST: tl.constexpr, LAST: tl.constexpr,
    IMAGES: tl.constexpr,
):  # fmt: skip
    """`_long_tile` with as many rows as the tile has."""
    if LAST < BLOCK_N and tile == tiles - 1:
        _long_tile(
            out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, bias_ptr, bias_row, tile * BLOCK_N + tl.arange(0, LAST), N, M, scale_log2, EXPANDED, D,
            BLOCK_D, BLOCK_M, REST, IMAGES,
        )  # fmt: skip
    else:
        _long_tile(
            out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, bias_ptr, bias_row, tile * BLOCK_N + tl.arange(0, BLOCK_N), N, M, scale_log2, EXPANDED, D,
            BLOCK_D, BLOCK_M, REST, IMAGES,
        )  # fmt: skip


@triton.jit
def _fwd_long_kernel(
    out_ptr,  # [B, H, N, D]
    lse_ptr,  # [B, H, N] log2 of the softmax denominators, or None
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
    scale_log2,
    EXPANDED: tl.constexpr,  # the bias is padded to a multiple of 16 keys and in units of log2
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
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b * q_step
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b * k_step
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b * v_step
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    out_step, out_row = aligned(out_stride_b, ALIGN), aligned(out_stride_n, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN) + b * out_step
    lse_at = (b * H + h) * N
    lse_step = H * N
    if SHORT > 0 and b + IMAGES > B:
        _long_rows(
            out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, bias_ptr, bias_stride_n, tile, tiles, N, M, scale_log2, EXPANDED, D, BLOCK_D, BLOCK_N,
            BLOCK_M, REST, LAST, SHORT,
        )  # fmt: skip
    else:
        _long_rows(
            out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, bias_ptr, bias_stride_n, tile, tiles, N, M, scale_log2, EXPANDED, D, BLOCK_D, BLOCK_N,
            BLOCK_M, REST, LAST, IMAGES,
        )  # fmt: skip


def long_images(head_dim: int, itemsize: int, arch: int) -> int:
    """How many images share each bias tile in the long kernel: what the registers hold."""
    if itemsize == 4 or head_dim > 64:
        return 1
    return (3 if head_dim <= 32 else 2) - reads_operands_from_registers(arch)


def short_limit(head_dim: int, itemsize: int, arch: int) -> int:
    """Most keys that the short kernel takes: bias and scores of a whole row are in registers."""
    if itemsize == 4:
        return 0
    if reads_operands_from_registers(arch):
        return 64 if head_dim <= 64 else 0
    return 208 if head_dim <= 32 else 128


def forward_calls(
    out: Tensor, lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, arch: int,
    expanded: bool,
) -> list[Call]:  # fmt: skip
    """The launch that fills out and, where given, lse [B, H, N] fp32. An expanded bias is [H, N, M padded to 16]."""
    B, H, N, D = q.shape
    M = k.shape[2]
    if few_keys(q, M, arch):
        return few_keys_calls(out, lse, q, k, v, bias, scale, expanded)
    short = cdiv(M, 16) * 16 <= short_limit(D, q.element_size(), arch)
    block_n = 64 if q.element_size() == 2 else 32
    tail = short and D <= 32 and has_tail(N, block_n) and images_per_program(B, cdiv(N, block_n) * H) >= 4
    warps = 8 if short and D > 64 else 4
    if tall_tile(q, arch) and not tail and warps == 4 and not (short and reads_results_from_tensor_memory(arch)):
        block_n, warps = 256 if short and tallest_tile(q, M) else 128, 8
    tiles = cdiv(N, block_n)
    args = {
        "out_ptr": out, "lse_ptr": lse, "q_ptr": q, "k_ptr": k, "v_ptr": v, "bias_ptr": bias,
        "out_stride_b": out.stride(0), "out_stride_h": out.stride(1), "out_stride_n": out.stride(2),
        "q_stride_b": q.stride(0), "q_stride_h": q.stride(1), "q_stride_n": q.stride(2),
        "k_stride_b": k.stride(0), "k_stride_h": k.stride(1), "k_stride_m": k.stride(2),
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_m": v.stride(2),
        "bias_stride_h": bias.stride(0), "bias_stride_n": bias.stride(1), "B": B, "H": H, "N": N, "M": M,
        "scale_log2": scale * LOG2E, "EXPANDED": expanded, "ALIGN": stride_alignment(q, k, v, out), "D": D,
        "BLOCK_D": padded_head_dim(D), "BLOCK_N": block_n,
    }  # fmt: skip
    if short:
        images = images_per_program(B, cdiv(N, 64 if block_n == 128 else block_n) * H)
        if block_n == 256:  # its registers leave room for one program on an SM
            images = images_in_one_wave(B, tiles * H)
        keys = pieces(M, 3, 128)
        args |= {"IMAGES": images, "KEYS_0": keys[0], "KEYS_1": keys[1], "KEYS_2": keys[2], "TAIL": tail}
        kernel = _fwd_short_kernel
    else:
        images = min(max(1, B), long_images(D, q.element_size(), arch))
        block_m = 64 if q.element_size() == 2 and not reads_operands_from_registers(arch) else 32
        rest = rest_block(M, block_m)
        if rest and not expanded and reads_operands_from_registers(arch):  # the pointers of a second size spill
            rest = block_m
        args |= {"IMAGES": images, "SHORT": B % images, "LAST": last_tile(N, block_n), "BLOCK_M": block_m, "REST": rest}
        kernel = _fwd_long_kernel
    return [Call(kernel=kernel, args=args, grid=tiles * H * cdiv(B, images), pass_name="fwd", products=2,
                 scores=B * H * N * M, num_warps=warps, num_stages=1)]  # fmt: skip
