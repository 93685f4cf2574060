"""Forward kernel of bias_attention for many queries and few keys (CMT at 384 px): keys and values stand still on chip.

A program loads the keys and values of two images once, into shared memory, and walks through tiles of queries; the
second image finds a tile's bias in the L1 cache. `streamed_kernel` would read keys and values again for every tile of
queries: in CMT-S's first stage at 384 px that is 3.1 times the unavoidable bytes from L2, this 2.1.
"""

# ruff: noqa: RUF005 - Triton joins tuples by + only
# Parameters of kernels are Triton values, which have no Python types; tuples change their length as they grow.
# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"

from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.attention.blocks import padded_head_dim, pieces, stride_alignment, tall_tile
from vitkernels.attention.tiles import (
    aligned,
    exponential,
    load_bias,
    load_rows_or_last,
    row_step,
    store_lse,
    store_rows,
    sum_rows,
)
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.constants import LOG2E, LOWEST
from vitkernels.runtime.device import MULTIPROCESSORS


@triton.jit
def _absorb_held(q, k, v, bias, score_scale, top, total, acc, EXPANDED: tl.constexpr, FIRST: tl.constexpr):
    """One piece of keys into the running softmax (top [R], total [R, 8], acc [R, BLOCK_D]) of one image."""
    s = tl.dot(q, tl.trans(k)) * score_scale + bias
    new_top = tl.maximum(top, tl.max(s, 1))
    if not FIRST:
        shrink = exponential(top - new_top, EXPANDED)[:, None]
        acc, total = acc * shrink, total * shrink
    p = exponential(s - new_top[:, None], EXPANDED).to(q.dtype)
    return new_top, sum_rows(p, total), tl.dot(p, v, acc)


@triton.jit
def _fwd_few_keys_kernel(
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
    TILES,  # of queries, for one program
    EXPANDED: tl.constexpr,  # the bias is padded to whole pieces; it and scores are in units of log2
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IMAGES: tl.constexpr,
    KEYS_0: tl.constexpr,
    KEYS_1: tl.constexpr,  # 0 where fewer pieces hold all keys
    KEYS_2: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    splits = tl.cdiv(tiles, TILES)
    first = pid % splits * TILES
    h, b_first = (pid // splits) % H, pid // (splits * H) * IMAGES
    h64 = tl.cast(h, tl.int64)
    bias_ptr += h64 * bias_stride_h
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_m, ALIGN), aligned(v_stride_m, ALIGN)
    out_step, out_row = aligned(out_stride_b, ALIGN), aligned(out_stride_n, ALIGN)
    bias_row = row_step(bias_stride_n, ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN)
    k_ptr += h64 * aligned(k_stride_h, ALIGN)
    v_ptr += h64 * aligned(v_stride_h, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN)

    keys = (tl.arange(0, KEYS_0),)
    if KEYS_1 > 0:
        keys = keys + (KEYS_0 + tl.arange(0, KEYS_1),)
    if KEYS_2 > 0:
        keys = keys + (KEYS_0 + KEYS_1 + tl.arange(0, KEYS_2),)
    PIECES: tl.constexpr = 1 + (KEYS_1 > 0) + (KEYS_2 > 0)
    ks, vs = (), ()
    for i in tl.static_range(IMAGES):
        b = tl.minimum(b_first + i, B - 1).to(tl.int64)
        for j in tl.static_range(PIECES):
            ks = ks + (load_rows_or_last(k_ptr + b * k_step, k_row, keys[j], M, D, BLOCK_D),)
            vs = vs + (load_rows_or_last(v_ptr + b * v_step, v_row, keys[j], M, D, BLOCK_D),)

    for tile in range(first, tl.minimum(first + TILES, tiles)):
        rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        for i in tl.static_range(IMAGES):
            b = tl.minimum(b_first + i, B - 1).to(tl.int64)
            n_rows = tl.where(b_first + i < B, N, 0)  # images beyond the batch are not written
            q = load_rows_or_last(q_ptr + b * q_step, q_row, rows, N, D, BLOCK_D)
            top = tl.full([BLOCK_N], LOWEST, tl.float32)
            total = tl.zeros([BLOCK_N, 8], tl.float32)
            acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            for j in tl.static_range(PIECES):
                bias = load_bias(bias_ptr, bias_row, rows, N, keys[j], M, EXPANDED)
                top, total, acc = _absorb_held(
                    q, ks[i * PIECES + j], vs[i * PIECES + j], bias, score_scale, top, total, acc, EXPANDED, j == 0
                )
            denominator = tl.max(total, 1)
            out = acc * (1.0 / denominator)[:, None]
            store_rows(out_ptr + b * out_step, out_row, out, rows, n_rows, D, BLOCK_D)
            if lse_ptr is not None:
                store_lse(lse_ptr, b * H + h, rows, N, n_rows, top, denominator, EXPANDED)


_IMAGES = 2  # of one program: more leave no registers


def few_keys(q: Tensor, n_keys: int, arch: int) -> bool:
    """Whether this kernel pays: more than 64 keys and four times as many queries; made for sm_90's registers alone."""
    _, _, N, D = q.shape
    return arch // 10 == 9 and D <= 64 and 64 < n_keys <= 144 and 4 * n_keys <= N and tall_tile(q, arch)


@lru_cache(maxsize=4096)
def _tiles_of_one_program(tiles: int, pieces_of_batch: int) -> int:
    """Tiles of queries for one program: the number at which the busiest multiprocessor has least to do.

    Loading the keys counts as much as one tile of one image.
    """

    def cost(each: int) -> tuple[int, int]:
        return cdiv(pieces_of_batch * cdiv(tiles, each), MULTIPROCESSORS) * (each * _IMAGES + 1), -each

    return min(range(1, tiles + 1), key=cost)


def few_keys_calls(
    out: Tensor, lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, expanded: bool
) -> list[Call]:
    """The launch that fills out and, where given, lse fp32, as `store_lse` fills it."""
    B, H, N, D = q.shape
    M = k.shape[2]
    keys = pieces(M, 3, 64)
    tiles, groups = cdiv(N, 128), cdiv(B, _IMAGES)

    each = _tiles_of_one_program(tiles, groups * H)
    args = {
        "out_ptr": out, "lse_ptr": lse, "q_ptr": q, "k_ptr": k, "v_ptr": v, "bias_ptr": bias,
        "out_stride_b": out.stride(0), "out_stride_h": out.stride(1), "out_stride_n": out.stride(2),
        "q_stride_b": q.stride(0), "q_stride_h": q.stride(1), "q_stride_n": q.stride(2),
        "k_stride_b": k.stride(0), "k_stride_h": k.stride(1), "k_stride_m": k.stride(2),
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_m": v.stride(2),
        "bias_stride_h": bias.stride(0), "bias_stride_n": bias.stride(1), "B": B, "H": H, "N": N, "M": M,
        "score_scale": scale * LOG2E.value if expanded else scale, "TILES": each,
        "EXPANDED": expanded, "ALIGN": stride_alignment(q, k, v, out, bias=bias),
        "D": D, "BLOCK_D": padded_head_dim(D), "BLOCK_N": 128, "IMAGES": _IMAGES, "KEYS_0": keys[0], "KEYS_1": keys[1],
        "KEYS_2": keys[2],
    }  # fmt: skip
    return [Call(kernel=_fwd_few_keys_kernel, args=args, grid=cdiv(tiles, each) * H * groups, pass_name="fwd",
                 products=2, scores=B * H * N * M, num_warps=8, num_stages=1)]  # fmt: skip
