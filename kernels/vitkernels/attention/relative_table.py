"""The table of relative attention: expanded to a dense bias before the kernels, its gradient gathered after them."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.constants import LOG2E, LOWEST_EXPANDED, OUTSIDE


@triton.jit
def _expand_kernel(
    out_ptr,  # [H, N, P] with P = N padded to 16
    table_ptr,  # [(2h-1)(2w-1), H]
    table_stride,
    H,
    N,
    P,
    grid_h,
    grid_w,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(P, BLOCK_M), tl.cdiv(N, BLOCK_N)
    cols = pid % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = pid // tiles_m % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    head = pid // (tiles_m * tiles_n)
    width = 2 * grid_w - 1
    at_row = (rows // grid_w + grid_h - 1) * width + rows % grid_w + grid_w - 1
    at_col = cols // grid_w * width + cols % grid_w
    inside = (rows[:, None] < N) & (cols[None, :] < N)
    offs = (at_row[:, None] - at_col[None, :]) * tl.cast(table_stride, tl.int64) + head
    bias = tl.load(table_ptr + offs, mask=inside, other=OUTSIDE).to(tl.float32)
    bias = tl.where(bias == OUTSIDE, OUTSIDE, tl.maximum(bias * LOG2E, LOWEST_EXPANDED))
    if out_ptr.dtype.element_ty == tl.float16:
        bias = tl.minimum(bias, -LOWEST_EXPANDED)
    out_ptr += tl.cast(head, tl.int64) * N * P
    mask = (rows[:, None] < N) & (cols[None, :] < P)
    tl.store(out_ptr + rows[:, None] * P + cols[None, :], bias.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def table_gradient_kernel(
    dtable_ptr,  # [(2h-1)(2w-1), H]
    dbias_ptr,  # [parts, H, N, N] fp32
    parts,
    H,
    grid_h,
    grid_w,
    BLOCK_DX: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    pid = tl.program_id(0)
    width = 2 * grid_w - 1
    tiles = tl.cdiv(width, BLOCK_DX)
    head, dy = pid // tiles % H, pid // (tiles * H) - (grid_h - 1)
    offs_dx = pid % tiles * BLOCK_DX + tl.arange(0, BLOCK_DX)
    dx = offs_dx - (grid_w - 1)
    n = grid_h * grid_w
    dbias_ptr += tl.cast(head, tl.int64) * n * n
    # Keys (y, x) whose query (y + dy, x + dx) lies on the grid.
    first_y = tl.maximum(-dy, 0)
    total = tl.zeros([BLOCK_DX, BLOCK_X], tl.float32)
    for first_x in range(0, grid_w, BLOCK_X):
        x = first_x + tl.arange(0, BLOCK_X)
        query_x = x[None, :] + dx[:, None]
        inside = (x[None, :] < grid_w) & (query_x >= 0) & (query_x < grid_w)
        at = ((first_y + dy) * grid_w + query_x) * n + first_y * grid_w + x[None, :]
        for part in range(parts):
            base = dbias_ptr + tl.cast(part, tl.int64) * H * n * n
            for _ in range(grid_h - tl.abs(dy)):
                total += tl.load(base + at, mask=inside, other=0.0)
                base += grid_w * n + grid_w  # one row of keys and of queries further
    dtable = tl.sum(total, 1).to(dtable_ptr.dtype.element_ty)
    tl.store(dtable_ptr + ((dy + grid_h - 1) * width + offs_dx) * H + head, dtable, mask=offs_dx < width)


def expand_call(out: Tensor, table: Tensor, grid: tuple[int, int]) -> Call:
    """The launch that fills out [H, N, P] from table [(2h-1)(2w-1), H]."""
    H, N, P = out.shape
    args = {
        "out_ptr": out, "table_ptr": table, "table_stride": table.stride(0), "H": H, "N": N, "P": P,
        "grid_h": grid[0], "grid_w": grid[1], "BLOCK_N": 64, "BLOCK_M": 128,
    }  # fmt: skip
    return Call(kernel=_expand_kernel, args=args, grid=cdiv(P, 128) * cdiv(N, 64) * H, pass_name="expand")
