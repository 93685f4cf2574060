"""bias_attention: softmax(q k^T * scale + bias) v, with a dense bias for each head, shared by the images of a batch.

Fused: both products, the bias, the softmax. The N x M scores never leave the chip. Cannot be avoided: reading q, k, v and
bias once and writing the output (bytes), 4 B H N M D floating-point operations, B H N M exp2.

The bias does not depend on the image, so it stands still and the images move: a program owns a tile of queries of
one head and walks through a group of images. `_fwd_short_kernel` holds the whole row of keys in up to three
power-of-two pieces (196 = 128 + 64 + 16 less padding), so that the softmax needs no rescaling; `_fwd_long_kernel`
puts blocks of keys outside and up to four images inside. Everything is computed in units of log2, since the
hardware has exp2. Row sums come from the matrix unit: p is multiplied by ones while it sits in registers.

The gradients are in bias_attention_bwd.py. Scaled dot-product attention: Vaswani et al., arXiv:1706.03762; the
softmax in blocks: Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkernels._common import (
    LOG2E,
    Call,
    aligned,
    autocast,
    cdiv,
    check_qkv,
    check_shape,
    images_per_program,
    kernels_run_on,
    last_contiguous,
    load_bias,
    load_rows,
    needs_grad,
    padded_head_dim,
    reference_gradients,
    run_all,
    pieces,
    store_rows,
    stride_alignment,
    sum_parts_call,
    sum_rows,
    token_major,
)
from vitkernels._launch import Launch
from vitkernels.bias_attention_bwd import backward_calls, bias_slices


@triton.jit
def _absorb(q, k_ptr, k_row, v_ptr, v_row, bias, keys, n_keys, scale_log2, top, total, acc, D: tl.constexpr):
    """One block of keys into the running softmax (top [R], total [R, 8], acc [R, BLOCK_D]) of one image."""
    BLOCK_D: tl.constexpr = q.shape[1]
    s = tl.dot(q, tl.trans(load_rows(k_ptr, k_row, keys, n_keys, D, BLOCK_D)), input_precision="tf32x3")
    s = s * scale_log2 + bias
    new_top = tl.maximum(top, tl.max(s, 1))
    shrink = tl.math.exp2(top - new_top)[:, None]
    p = tl.math.exp2(s - new_top[:, None]).to(q.dtype)
    v = load_rows(v_ptr, v_row, keys, n_keys, D, BLOCK_D)
    acc = tl.dot(p, v, acc * shrink, input_precision="tf32x3")
    return new_top, sum_rows(p, total * shrink), acc


@triton.jit
def _finish(out_ptr, out_row, lse_ptr, lse_at, rows, n_rows, top, total, acc, D: tl.constexpr):
    denominator = tl.max(total, 1)
    store_rows(out_ptr, out_row, acc * (1.0 / denominator)[:, None], rows, n_rows, D, acc.shape[1])
    if lse_ptr is not None:
        tl.store(lse_ptr + lse_at + rows, top + tl.math.log2(denominator), mask=rows < n_rows)


@triton.jit
def _load_images(ptr, step, row, images, b_end, rows, n_rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[I, R, BLOCK_D]: the same rows of several images; zero beyond b_end, n_rows and D."""
    offs_d = tl.arange(0, BLOCK_D)
    mask = (images < b_end)[:, None, None] & (rows < n_rows)[None, :, None]
    if D < BLOCK_D:
        mask = mask & (offs_d < D)[None, None, :]
    at = images.to(tl.int64)[:, None, None] * step + (rows * row)[None, :, None] + offs_d[None, None, :]
    return tl.load(ptr + at, mask=mask, other=0.0)


@triton.jit
def _fwd_tail(
    out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row, bias_ptr,
    bias_row, rows, b_first, b_end, h, H, N, M, scale_log2, EXPANDED: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The last few queries of each image: 16 rows for a warp and image, four images at once, instead of 64 rows."""
    offs_d = tl.arange(0, BLOCK_D)
    ones = tl.full([4, BLOCK_M, 8], 1.0, q_ptr.dtype.element_ty)
    for b in range(b_first, b_end, 4):
        images = b + tl.arange(0, 4)
        q = _load_images(q_ptr, q_step, q_row, images, b_end, rows, N, D, BLOCK_D)
        top = tl.full([4, 16], -3.0e38, tl.float32)
        total = tl.zeros([4, 16, 8], tl.float32)
        acc = tl.zeros([4, 16, BLOCK_D], tl.float32)
        for start in range(0, M, BLOCK_M):
            keys = start + tl.arange(0, BLOCK_M)
            k = _load_images(k_ptr, k_step, k_row, images, b_end, keys, M, D, BLOCK_D)
            bias = load_bias(bias_ptr, bias_row, rows, N, keys, M, EXPANDED)  # [16, BLOCK_M] serves all images
            s = tl.dot(q, tl.permute(k, (0, 2, 1))) * scale_log2 + bias[None, :, :]
            new_top = tl.maximum(top, tl.max(s, 2))
            shrink = tl.math.exp2(top - new_top)[:, :, None]
            p = tl.math.exp2(s - new_top[:, :, None]).to(q.dtype)
            v = _load_images(v_ptr, v_step, v_row, images, b_end, keys, M, D, BLOCK_D)
            acc = tl.dot(p, v, acc * shrink)
            total = tl.dot(p, ones, total * shrink)
            top = new_top
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
        q = load_rows(q_ptr + b64 * q_step, q_row, rows, N, D, BLOCK_D)
        top = tl.full([R], -3.0e38, tl.float32)
        total = tl.zeros([R, 8], tl.float32)
        acc = tl.zeros([R, BLOCK_D], tl.float32)
        top, total, acc = _absorb(q, k_b, k_row, v_b, v_row, bias_0, keys_0, M, scale_log2, top, total, acc, D)
        if KEYS_1 > 0:
            top, total, acc = _absorb(q, k_b, k_row, v_b, v_row, bias_1, keys_1, M, scale_log2, top, total, acc, D)
        if KEYS_2 > 0:
            top, total, acc = _absorb(q, k_b, k_row, v_b, v_row, bias_2, keys_2, M, scale_log2, top, total, acc, D)
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
            bias_ptr, bias_stride_n, tile * BLOCK_N + tl.arange(0, 16), b_first, b_end, h, H, N, M, scale_log2, EXPANDED, D,
            BLOCK_D, 64,
        )  # fmt: skip
    else:
        _fwd_tile(
            out_ptr, out_step, out_row, lse_ptr, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step, v_row,
            bias_ptr, bias_stride_n, tile * BLOCK_N + tl.arange(0, BLOCK_N), b_first, b_end, h, H, N, M, scale_log2, EXPANDED,
            D, BLOCK_D, KEYS_0, KEYS_1, KEYS_2,
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
    IMAGES: tl.constexpr,  # 1, 2 or 4 images share each bias tile
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    h = (pid // tiles) % H
    b = (pid // (tiles * H) * IMAGES).to(tl.int64)
    rows = pid % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    h64 = h.to(tl.int64)
    bias_ptr += h64 * bias_stride_h
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b * q_step
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b * k_step
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b * v_step
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    # An image past the batch has no rows: it is computed on zeros and not stored.
    q_0 = load_rows(q_ptr, q_row, rows, N, D, BLOCK_D)
    top_0 = tl.full([BLOCK_N], -3.0e38, tl.float32)
    total_0 = tl.zeros([BLOCK_N, 8], tl.float32)
    acc_0 = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if IMAGES > 1:
        n_1, m_1 = tl.where(b + 1 < B, N, 0), tl.where(b + 1 < B, M, 0)
        q_1 = load_rows(q_ptr + q_step, q_row, rows, n_1, D, BLOCK_D)
        top_1, total_1, acc_1 = top_0, total_0, acc_0
    if IMAGES > 2:
        n_2, m_2 = tl.where(b + 2 < B, N, 0), tl.where(b + 2 < B, M, 0)
        n_3, m_3 = tl.where(b + 3 < B, N, 0), tl.where(b + 3 < B, M, 0)
        q_2 = load_rows(q_ptr + 2 * q_step, q_row, rows, n_2, D, BLOCK_D)
        q_3 = load_rows(q_ptr + 3 * q_step, q_row, rows, n_3, D, BLOCK_D)
        top_2, total_2, acc_2 = top_0, total_0, acc_0
        top_3, total_3, acc_3 = top_0, total_0, acc_0
    for start in range(0, M, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        bias = load_bias(bias_ptr, bias_stride_n, rows, N, keys, M, EXPANDED)  # [BLOCK_N, BLOCK_M]
        top_0, total_0, acc_0 = _absorb(
            q_0, k_ptr, k_row, v_ptr, v_row, bias, keys, M, scale_log2, top_0, total_0, acc_0, D
        )
        if IMAGES > 1:
            top_1, total_1, acc_1 = _absorb(
                q_1, k_ptr + k_step, k_row, v_ptr + v_step, v_row, bias, keys, m_1, scale_log2, top_1, total_1, acc_1, D
            )
        if IMAGES > 2:
            top_2, total_2, acc_2 = _absorb(
                q_2, k_ptr + 2 * k_step, k_row, v_ptr + 2 * v_step, v_row, bias, keys, m_2, scale_log2,
                top_2, total_2, acc_2, D,
            )  # fmt: skip
            top_3, total_3, acc_3 = _absorb(
                q_3, k_ptr + 3 * k_step, k_row, v_ptr + 3 * v_step, v_row, bias, keys, m_3, scale_log2,
                top_3, total_3, acc_3, D,
            )  # fmt: skip
    out_step, out_row = aligned(out_stride_b, ALIGN), aligned(out_stride_n, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN) + b * out_step
    lse_at = (b * H + h) * N
    lse_step = H * N
    _finish(out_ptr, out_row, lse_ptr, lse_at, rows, N, top_0, total_0, acc_0, D)
    if IMAGES > 1:
        _finish(out_ptr + out_step, out_row, lse_ptr, lse_at + lse_step, rows, n_1, top_1, total_1, acc_1, D)
    if IMAGES > 2:
        _finish(out_ptr + 2 * out_step, out_row, lse_ptr, lse_at + 2 * lse_step, rows, n_2, top_2, total_2, acc_2, D)
        _finish(out_ptr + 3 * out_step, out_row, lse_ptr, lse_at + 3 * lse_step, rows, n_3, top_3, total_3, acc_3, D)


def bias_attention_reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """`bias_attention` in plain PyTorch, computed in fp32 (fp64 for fp64 inputs) and returned in q.dtype."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return ((scores + bias.to(dtype)).softmax(-1) @ v.to(dtype)).to(q.dtype)


def bias_attention_work(
    B: int, H: int, N: int, M: int, D: int, itemsize: int = 2, bias_itemsize: int = 4, backward: bool = False
) -> tuple[int, int]:
    """Unavoidable (floating-point operations of the matrix products, bytes of device memory) of one pass.

    The backward pass has five products of the forward pass's two kinds (scores again, dP, dQ, dK, dV); it reads
    q, k, v, out, their gradient and the bias and writes four gradients.
    """
    tokens, scores = B * H * D * itemsize, B * H * N * M
    if backward:
        return 10 * scores * D, tokens * (4 * N + 4 * M) + 2 * H * N * M * bias_itemsize
    return 4 * scores * D, tokens * (2 * N + 2 * M) + H * N * M * bias_itemsize


def long_images(head_dim: int, itemsize: int) -> int:
    """How many images share each bias tile in the long kernel: what the registers hold."""
    if itemsize == 4 or head_dim > 64:
        return 1
    return 4 if head_dim <= 32 else 2


def short_limit(head_dim: int, itemsize: int) -> int:
    """Most keys that the short kernel takes: bias and scores of a whole row are in registers."""
    if itemsize == 4:
        return 0
    return 208 if head_dim <= 32 else 128


def forward_calls(
    out: Tensor, lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, expanded: bool
) -> list[Call]:
    """The launch that fills out and, where given, lse [B, H, N] fp32. An expanded bias is [H, N, M padded to 16]."""
    B, H, N, D = q.shape
    M = k.shape[2]
    block_n = 64 if q.element_size() == 2 else 32
    programs = cdiv(N, block_n) * H
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
    if cdiv(M, 16) * 16 <= short_limit(D, q.element_size()):
        images = images_per_program(B, programs)
        keys = pieces(M, 3, 128)
        args |= {"IMAGES": images, "KEYS_0": keys[0], "KEYS_1": keys[1], "KEYS_2": keys[2],
                 "TAIL": N > block_n and 0 < N % block_n <= 16 and images >= 4}  # fmt: skip
        kernel = _fwd_short_kernel
    else:
        images = min(triton.next_power_of_2(max(1, B)), long_images(D, q.element_size()))
        args |= {"IMAGES": images, "BLOCK_M": 64 if q.element_size() == 2 else 32}
        kernel = _fwd_long_kernel
    return [Call(kernel=kernel, args=args, grid=programs * cdiv(B, images), pass_name="fwd", products=2,
                 scores=B * H * N * M)]


torch.library.define(
    "vitkernels::bias_attention_fwd",
    "(Tensor q, Tensor k, Tensor v, Tensor bias, float scale, bool need_lse) -> (Tensor, Tensor)",
)
torch.library.define(
    "vitkernels::bias_attention_bwd",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor bias, Tensor out, Tensor lse, float scale, bool need_dbias)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("vitkernels::bias_attention_fwd")
def _fwd_fake(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:3] if need_lse else (0,), dtype=torch.float32)
    return token_major(q, q.shape[2]), lse


@torch.library.register_fake("vitkernels::bias_attention_bwd")
def _bwd_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor, scale: float, need_dbias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, m = q.shape[2], k.shape[2]
    return token_major(q, n), token_major(k, m), token_major(v, m), bias.new_empty(bias.shape if need_dbias else (0,))


@torch.library.impl("vitkernels::bias_attention_fwd", ("cpu", "cuda"))
def _fwd(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, need_lse: bool) -> tuple[Tensor, Tensor]:
    out, lse = _fwd_fake(q, k, v, bias, scale, need_lse)
    if not kernels_run_on(q):
        with torch.autocast(q.device.type, enabled=False):
            return out.copy_(bias_attention_reference(q, k, v, bias, scale)), lse.zero_()
    q, k, v, bias = (last_contiguous(x) for x in (q, k, v, bias))
    run_all(forward_calls(out, lse if need_lse else None, q, k, v, bias, scale, expanded=False))
    return out, lse


@torch.library.impl("vitkernels::bias_attention_bwd", ("cpu", "cuda"))
def _bwd(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor, scale: float, need_dbias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, dbias = _bwd_fake(grad, q, k, v, bias, out, lse, scale, need_dbias)
    if not kernels_run_on(q):
        grads = reference_gradients(lambda *x: bias_attention_reference(*x, scale), (q, k, v, bias), grad)
        return tuple(
            into.copy_(x) for into, x in zip((dq, dk, dv, dbias), grads if need_dbias else (*grads[:3], dbias), strict=True)
        )  # type: ignore[return-value]
    q, k, v, bias, grad = (last_contiguous(x) for x in (q, k, v, bias, grad))
    run_all(bias_backward_calls(dq, dk, dv, dbias if need_dbias else None, q, k, v, bias, out, lse, grad, scale))
    return dq, dk, dv, dbias


def bias_backward_calls(
    dq: Tensor, dk: Tensor, dv: Tensor, dbias: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor,
    out: Tensor, lse: Tensor, grad: Tensor, scale: float,
) -> list[Call]:  # fmt: skip
    """`backward_calls` and, where dbias (dense) is given, the sum of its partial gradients."""
    B, H, N, _ = q.shape
    parts = None
    if dbias is not None:
        parts = lse.new_empty((bias_slices(B, H, N), *dbias.shape))
    calls = backward_calls(dq, dk, dv, parts, torch.empty_like(lse), q, k, v, bias, out, lse, grad, scale)
    return calls if dbias is None or parts is None else [*calls, sum_parts_call(dbias, parts, "bwd_sum_dbias")]


@register_flop_formula(torch.ops.vitkernels.bias_attention_fwd)
def _fwd_flops(q_shape: tuple, k_shape: tuple, *_: object, **__: object) -> int:
    return bias_attention_work(*q_shape[:3], k_shape[2], q_shape[3])[0]


@register_flop_formula(torch.ops.vitkernels.bias_attention_bwd)
def _bwd_flops(grad_shape: tuple, q_shape: tuple, k_shape: tuple, *_: object, **__: object) -> int:
    return bias_attention_work(*q_shape[:3], k_shape[2], q_shape[3], backward=True)[0]


class _BiasAttention(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return torch.ops.vitkernels.bias_attention_fwd(q, k, v, bias, scale, True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        q, k, v, bias, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(q, k, v, bias, *output)

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        need_dbias = ctx.needs_input_grad[3]
        grads = torch.ops.vitkernels.bias_attention_bwd(grad, *ctx.saved_tensors, ctx.scale, need_dbias)
        return (*grads[:3], grads[3] if need_dbias else None, None)


def bias_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v without storing the N x M scores.

    Tensors on the CPU are computed by `bias_attention_reference`, except under TRITON_INTERPRET=1, where Triton's
    interpreter runs the kernels. Under autocast q, k and v are cast to its dtype; the bias stays as it is.

    Args:
        q: [B, H, N, D]; k, v: [B, H, M, D]; fp16, bf16 or fp32 (on the CPU also fp64), any strides with a contiguous
            last dim (anything else is copied); N and M from 1 to 16384, D from 16 to 128.
        bias: [H, N, M], any floating dtype, added after scaling, may hold -inf; receives a gradient, summed over the
            batch in fp32.
        scale: default D ** -0.5.

    Returns: [B, H, N, D] in q.dtype, laid out as (B, N, H, D) so that merging heads is free.

    Raises: ValueError on shape, dtype or device mismatch.
    """
    q, k, v = autocast(q, k, v)
    check_qkv("bias_attention", q, k, v, bias=bias)
    check_shape("bias_attention", "bias", bias, (q.shape[1], q.shape[2], k.shape[2]), q)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if needs_grad(q, k, v, bias):
        return _BiasAttention.apply(q, k, v, bias, scale)[0]
    return torch.ops.vitkernels.bias_attention_fwd(q, k, v, bias, scale, False)[0]


@dataclass(frozen=True)
class BiasAttentionCase:
    """One attention layer of a real model: B images, H heads, N queries, M keys, D channels per head."""

    name: str
    B: int
    H: int
    N: int
    M: int
    D: int


BIAS_ATTENTION_CASES = (
    BiasAttentionCase("coatnet_0-s3-224", 64, 12, 196, 196, 32),
    BiasAttentionCase("coatnet_0-s4-224", 64, 24, 49, 49, 32),
    BiasAttentionCase("coatnet_0-s3-384", 64, 12, 576, 576, 32),
    BiasAttentionCase("coatnet_0-s4-384", 64, 24, 144, 144, 32),
    BiasAttentionCase("swin_t-s1-224", 4096, 3, 49, 49, 32),
    BiasAttentionCase("maxvit_t-s1-224", 4096, 2, 49, 49, 32),
    BiasAttentionCase("beit_b-224", 64, 12, 197, 197, 64),
    BiasAttentionCase("cmt_s-a-224", 64, 1, 3136, 49, 64),
    BiasAttentionCase("cmt_s-b-224", 64, 2, 784, 49, 64),
    BiasAttentionCase("cmt_s-c-224", 64, 4, 196, 49, 64),
    BiasAttentionCase("cmt_s-d-224", 64, 8, 49, 49, 64),
    BiasAttentionCase("cmt_s-a-384", 64, 1, 9216, 144, 64),
    BiasAttentionCase("cmt_s-b-384", 64, 2, 2304, 144, 64),
    BiasAttentionCase("cmt_s-c-384", 64, 4, 576, 144, 64),
    BiasAttentionCase("cmt_s-d-384", 64, 8, 144, 144, 64),
    BiasAttentionCase("cmt_ti-a-160", 64, 1, 1600, 25, 46),
    BiasAttentionCase("cmt_xs-a-192", 64, 1, 2304, 36, 52),
    BiasAttentionCase("cmt_b-a-256", 64, 1, 4096, 64, 76),
)


def audit_launches(arch: int) -> list[Launch]:
    """Every launch of the forward and backward pass of every case in bf16, for the audit; the same on all archs."""
    launches = []
    for case in BIAS_ATTENTION_CASES:
        B, H, N, M, D = case.B, case.H, case.N, case.M, case.D
        meta = {"device": "meta", "dtype": torch.bfloat16}
        q, k, v = (torch.empty((B, n, H, D), **meta).transpose(1, 2) for n in (N, M, M))
        bias, lse = torch.empty((H, N, M), device="meta"), torch.empty((B, H, N), device="meta")
        fwd = forward_calls(torch.empty_like(q), None, q, k, v, bias, D**-0.5, expanded=False)
        bwd = bias_backward_calls(
            *map(torch.empty_like, (q, k, v, bias)), q, k, v, bias, torch.empty_like(q), lse, torch.empty_like(q), D**-0.5
        )
        launches += [call.audit("bias_attention", case.name, D, B * H * N * M) for call in (*fwd, *bwd)]
    return launches
