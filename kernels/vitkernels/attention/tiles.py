"""Loads and stores of tiles in attention kernels: rows of q, k, v and of the bias."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.runtime.constants import LOG2E, OUTSIDE, TABLE


@triton.jit
def load_rows(
    ptr,  # [n_rows, D]
    stride,
    rows,  # [R]
    n_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[R, BLOCK_D] tile of rows; zero beyond n_rows and D."""
    offs_d = tl.arange(0, BLOCK_D)
    mask = rows[:, None] < n_rows
    if D < BLOCK_D:
        mask = mask & (offs_d[None, :] < D)
    return tl.load(ptr + rows[:, None] * stride + offs_d[None, :], mask=mask, other=0.0)


@triton.jit
def load_rows_or_last(
    ptr,  # [n_rows, D]
    stride,
    rows,  # [R]
    n_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[R, BLOCK_D] tile of rows; the last row again beyond n_rows, zero beyond D.

    For rows whose results are never stored, or multiplied by zero, so that any finite number will do: a load without a
    mask needs no zeroed registers and no predicates.
    """
    offs_d = tl.arange(0, BLOCK_D)
    pointers = ptr + tl.minimum(rows, n_rows - 1)[:, None] * stride + offs_d[None, :]
    if D == BLOCK_D:
        return tl.load(pointers)
    return tl.load(pointers, mask=(offs_d < D)[None, :], other=0.0)


@triton.jit
def load_rows_inside(ptr, stride, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """`load_rows_or_last` where all rows are inside the matrix."""
    offs_d = tl.arange(0, BLOCK_D)
    pointers = ptr + rows[:, None] * stride + offs_d[None, :]
    if D == BLOCK_D:
        return tl.load(pointers)
    return tl.load(pointers, mask=(offs_d < D)[None, :], other=0.0)


@triton.jit
def store_rows(
    ptr,  # [n_rows, D]
    stride,
    tile,  # [R, BLOCK_D]
    rows,  # [R]
    n_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store a tile of rows in the pointer's dtype, leaving out what lies beyond n_rows and D."""
    offs_d = tl.arange(0, BLOCK_D)
    mask = rows[:, None] < n_rows
    if D < BLOCK_D:
        mask = mask & (offs_d[None, :] < D)
    tl.store(ptr + rows[:, None] * stride + offs_d[None, :], tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def aligned(stride, ALIGN: tl.constexpr):
    """A stride as `stride_alignment` found it: 64-bit for 0, else with its divisor shown to the compiler.

    By itself the compiler looks for multiples of 16 only, and loads rows of 46 or 52 channels element by element.
    """
    # One return, since Triton wants all of a function's to be of one type.
    return tl.cast(stride, tl.int64) if ALIGN == 0 else (stride // ALIGN) * ALIGN


@triton.jit
def row_step(stride, ALIGN: tl.constexpr):
    """The stride of a bias' rows: 64-bit where `stride_alignment` found that a tile's offsets need it."""
    return tl.cast(stride, tl.int64) if ALIGN == 0 else stride


@triton.jit
def load_bias(
    ptr,  # [n_rows, n_cols], or its row-padded expansion
    stride,
    rows,  # [R]
    n_rows,
    cols,  # [K]
    n_cols,
    EXPANDED: tl.constexpr,
    FILL: tl.constexpr = OUTSIDE,
):
    """[R, K] tile of the bias, -inf (FILL) outside of the matrix.

    An expanded bias is as wide as its stride: its own padding is -inf.
    """
    width = stride if EXPANDED else n_cols
    mask = (rows[:, None] < n_rows) & (cols[None, :] < width)
    tile = tl.load(ptr + rows[:, None] * stride + cols[None, :], mask=mask, other=FILL)
    return tile if EXPANDED else tile.to(tl.float32)


@triton.jit
def load_bias_or_last(
    ptr,  # [n_rows, n_cols], or its row-padded expansion
    stride,
    rows,  # [R]
    n_rows,
    cols,  # [K]
    n_cols,
    EXPANDED: tl.constexpr,
):
    """`load_bias` with the last row again beyond n_rows, as in `load_rows_or_last`: fewer masks."""
    pointers = ptr + tl.minimum(rows, n_rows - 1)[:, None] * stride + cols[None, :]
    tile = tl.load(pointers, mask=(cols < (stride if EXPANDED else n_cols))[None, :], other=OUTSIDE)
    return tile if EXPANDED else tile.to(tl.float32)


@triton.jit
def load_bias_inside(ptr, stride, rows, n_rows, cols, EXPANDED: tl.constexpr):
    """`load_bias_or_last` where all columns are inside the matrix: no masks at all."""
    tile = tl.load(ptr + tl.minimum(rows, n_rows - 1)[:, None] * stride + cols[None, :])
    return tile if EXPANDED else tile.to(tl.float32)


@triton.jit
def exponential(x, EXPANDED: tl.constexpr):
    """e^x of a difference of scores in natural units, 2^x where a bias is EXPANDED.

    A dense bias is not multiplied by log2(e) when it is loaded: its lowest number, a mask, would become -inf.
    """
    return tl.math.exp2(x) if EXPANDED else tl.math.exp2(x * LOG2E)


@triton.jit
def store_lse(ptr, image_head, rows, N, n_rows, top, total, EXPANDED: tl.constexpr):
    """The softmax's denominators of rows [R] before n_rows: ptr is [B, H, N] for an expanded table, else [B, H, 2, N].

    For a table log2 of it, as one number. Else the largest score and log2 of the sum of exponentials below it: where a
    mask of -1e9 is the largest score, fp32 has no digits left for the other number.
    """
    if EXPANDED == TABLE:
        tl.store(ptr + image_head * N + rows, top + tl.math.log2(total), mask=rows < n_rows)
    else:
        ptr += image_head * (2 * N)
        tl.store(ptr + rows, top, mask=rows < n_rows)
        tl.store(ptr + N + rows, tl.math.log2(total), mask=rows < n_rows)


@triton.jit
def lse_step(N, EXPANDED: tl.constexpr):
    """Numbers that `store_lse` leaves of one image and head."""
    return N if EXPANDED == TABLE else 2 * N


@triton.jit
def load_lse(ptr, at, rows, n_rows, EXPANDED: tl.constexpr):
    """(largest score, log2 of the sum below it) [R], as `store_lse` left them; at [R] is where.

    For a table both are the one number that is there. Rows from n_rows on weigh nothing.
    """
    beyond: tl.constexpr = 1.0e30
    top = tl.load(ptr + at, mask=rows < n_rows, other=beyond if EXPANDED == TABLE else 0.0)
    total = top if EXPANDED == TABLE else tl.load(ptr + n_rows + at, mask=rows < n_rows, other=beyond)
    return top, total


@triton.jit
def softmax_weights(s, lse, EXPANDED: tl.constexpr):
    """softmax [R, K] of scores [R, K], from what `load_lse` gives."""
    below = s - lse[0][:, None]
    if EXPANDED == TABLE:
        return tl.math.exp2(below)
    return tl.math.exp2((below if EXPANDED else below * LOG2E) - lse[1][:, None])


@triton.jit
def store_scores(ptr, tile, rows, n_rows, cols, n_cols):
    """Store a tile [R, K] into a dense matrix [n_rows, n_cols], leaving out what lies beyond it."""
    pointers = ptr + rows[:, None] * n_cols + cols[None, :]
    tl.store(pointers, tile, mask=(rows[:, None] < n_rows) & (cols[None, :] < n_cols))


@triton.jit
def sum_rows(p, total):
    """total [R, 8] plus the row sums of p [R, K], in all columns: a product with ones, as the fp32 lanes are busy."""
    return tl.dot(p, tl.full([p.shape[1], 8], 1.0, p.dtype), total, input_precision="tf32x3")
