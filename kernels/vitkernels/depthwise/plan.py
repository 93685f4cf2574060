"""Which depthwise kernel runs at which shape, with which blocks: plain functions of shapes, shared with the audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vitkernels.depthwise.direct import depthwise_direct_dw_kernel, depthwise_direct_dx_kernel, depthwise_direct_kernel
from vitkernels.depthwise.matrix import depthwise_matrix_dw_kernel, depthwise_matrix_kernel
from vitkernels.runtime.call import cdiv
from vitkernels.runtime.device import MULTIPROCESSORS

# Programs that fill the largest target about four times over (132 SMs, two programs each).
_PROGRAMS = 1056


@dataclass(frozen=True)
class Geometry:
    """Sizes of one depthwise convolution: x [B, C, H, W], kernel [C, 1, K, K], result [B, C, OH, OW]."""

    B: int
    C: int
    H: int
    W: int
    K: int
    stride: int
    pad: int

    @property
    def OH(self) -> int:
        return (self.H + 2 * self.pad - self.K) // self.stride + 1

    @property
    def OW(self) -> int:
        return (self.W + 2 * self.pad - self.K) // self.stride + 1

    def transposed(self) -> Geometry:
        """The stride-1 convolution that takes the result's gradient to the input's."""
        return Geometry(self.B, self.C, self.OH, self.OW, self.K, 1, self.K - 1 - self.pad)


@dataclass(frozen=True)
class Flags:
    """What the epilogue does; the keys of the kernels' constexpr flags."""

    activation: str = "none"
    bias: bool = False
    scale: bool = False
    shift: bool = False
    pre: bool = False
    post: bool = False
    stats: bool = False
    grad: bool = False


@dataclass(frozen=True)
class Plan:
    """One launch without its tensors and strides: `slices` is how many rows of partial sums it writes."""

    kernel: Any
    grid: tuple[int, int]
    args: Mapping[str, Any]
    slices: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None


def _pow2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _flag_args(flags: Flags) -> dict[str, Any]:
    return {
        "ACT": flags.activation,
        "HAS_BIAS": flags.bias,
        "HAS_SCALE": flags.scale,
        "HAS_SHIFT": flags.shift,
        "PRE": flags.pre,
        "POST": flags.post,
        "STATS": flags.stats,
        "GRAD": flags.grad,
    }


def _rows_per_program(base: int, rows: int, halo: int) -> int:
    """Output rows that each of `base` programs walks, or a piece of them: what keeps the busiest SM least busy.

    A program reads `halo` rows more than it writes, and sets itself up in the time of about four rows.
    """

    def cost(pieces: int) -> tuple[int, int]:
        return cdiv(base * pieces, MULTIPROCESSORS) * (cdiv(rows, pieces) + halo + 4), pieces

    return cdiv(rows, min(range(1, rows + 1), key=cost))


def _window(k: int, columns: int) -> tuple[int, int]:
    """Outputs that one window of 16 inputs serves, and their place in the product: 8 or 16.

    A window serves up to 17 - k outputs; as many leave fewer inputs to be read twice and to be reordered, unless the
    row leaves much of its last window empty (14 for 3 x 3: rows of 56, 28 and 14 fill theirs).
    """
    most = 17 - k
    return (most, 16) if most > 8 and 16 * cdiv(columns, most) <= 1.2 * 8 * cdiv(columns, 8) else (8, 8)


@lru_cache(maxsize=4096)
def plan_conv(g: Geometry, flags: Flags, *, matrix: bool, precise: bool, channels_last: bool) -> Plan:
    """The forward kernel, or with `flags.grad` its gradient-of-the-epilogue form."""
    sizes = {"C": g.C, "H": g.H, "W": g.W, "OH": g.OH, "OW": g.OW, "pad": g.pad}
    if matrix:
        # With windows of 8 outputs, two 16-window tiles per warp share the bands they read from shared memory; the
        # accumulators of both leave no registers for the gradient's epilogue, for the sums beyond 7 x 7, nor, beyond
        # 3 x 3, for the pointers of loads narrower than 16 bytes.
        block_c, warps = 16, 8
        wide = channels_last and g.C % 8 == 0
        out, width = _window(g.K, g.OW) if wide or not flags.grad else (8, 8)
        strips, c_blocks = cdiv(g.OW, out), cdiv(g.C, block_c)
        block_m = 16 if flags.grad or ((7 if flags.stats else 9) if wide else 3) < g.K or width > 8 else 32
        if cdiv(g.B * strips, 32) * c_blocks < MULTIPROCESSORS // 2:
            block_m = 16
        if flags.stats and not flags.grad and not wide and g.K > 3:
            block_c, warps = 8, 4  # as many channels per warp; ptxas spills when it aims at two programs of eight warps
            c_blocks = cdiv(g.C, block_c)
        tiles = cdiv(g.B * strips, block_m)
        rows = _rows_per_program(tiles * c_blocks, g.OH, g.K - 1)
        grid = (tiles * c_blocks, cdiv(g.OH, rows))
        blocks = {"BLOCK_C": block_c, "BLOCK_M": block_m, "OUT": out, "WIDTH": width}
        sizes |= {"strips": strips, "windows": g.B * strips, "c_blocks": c_blocks, "rows": rows}
        whole = out == width and g.OW % out == 0 and g.B * strips % block_m == 0
        args = sizes | {"K": g.K, "WHOLE": whole} | _flag_args(flags) | blocks
        # Rows on their way: 32 KiB an SM, by two programs of two rows or by one of four, or in larger tiles by one of
        # two. ptxas would rather spill a little and fit three programs where two fit without; the sums, and the
        # gradient at 5 x 5, leave two programs no registers for a third stage.
        limit = 128 if wide and width > 8 and not flags.grad else None
        alone = block_m == 16 and grid[0] * grid[1] <= MULTIPROCESSORS
        few = not wide or (limit and flags.stats) or (flags.grad and g.K == 5)
        stages = 2 if few else 5 if alone else 3
        return Plan(depthwise_matrix_kernel, grid, args, tiles * grid[1], warps, stages, limit)
    # A tile is eight elements of each of 128 threads, along the contiguous axis.
    elements = 1024
    # Outputs that share inputs, as many as fit in registers; where nothing is shared, one.
    fewer = g.stride > 1 or g.K > 5 or flags.grad
    columns = (1 if g.stride >= g.K else 2 if fewer else 4) if channels_last else 1
    block_c = min(64, _pow2(g.C)) if channels_last else 2
    block_p = elements // block_c if channels_last else 128
    strips = cdiv(g.OW, columns)
    positions = g.B * g.OH * strips
    tiles, c_blocks = cdiv(positions, block_p), cdiv(g.C, block_c)
    sizes |= {"strips": strips, "positions": positions, "c_blocks": c_blocks}
    consts = {"K": g.K, "STRIDE": g.stride, "PRECISE": precise}
    blocks = {"BLOCK_C": block_c, "BLOCK_P": block_p, "COLUMNS": columns}
    args = sizes | consts | _flag_args(flags) | blocks
    return Plan(depthwise_direct_kernel, (tiles * c_blocks, 1), args, tiles, 4, 2)


@lru_cache(maxsize=4096)
def plan_dx(g: Geometry, *, precise: bool, channels_last: bool) -> Plan:
    """The input's gradient at stride > 1."""
    block_c = min(64, _pow2(g.C)) if channels_last else 2
    block_p = (512 if precise else 1024) // block_c if channels_last else 256
    positions = g.B * g.H * g.W
    tiles, c_blocks = cdiv(positions, block_p), cdiv(g.C, block_c)
    sizes = {"C": g.C, "H": g.H, "W": g.W, "OH": g.OH, "OW": g.OW, "pad": g.pad}
    sizes |= {"positions": positions, "c_blocks": c_blocks}
    consts = {"K": g.K, "STRIDE": g.stride, "BLOCK_C": block_c, "BLOCK_P": block_p}
    return Plan(depthwise_direct_dx_kernel, (tiles * c_blocks, 1), sizes | consts, 0, 4, 2)


@lru_cache(maxsize=4096)
def plan_dw(g: Geometry, *, matrix: bool, total: bool, channels_last: bool) -> Plan:
    """The weight's gradient, and with `total` the per-channel sum of du; `slices` partial results to be added up."""
    sizes = {"C": g.C, "H": g.H, "W": g.W, "OH": g.OH, "OW": g.OW}
    if matrix:
        block_c, block_m, warps = 16, 16, 8
        out, width = _window(g.K, g.OW) if g.C % 8 == 0 or not channels_last else (8, 8)
        strips = cdiv(g.OW, out)
        c_blocks, blocks_m = cdiv(g.C, block_c), cdiv(g.B * strips, block_m)
        # The diagonals are summed once per program: give each several tiles when there are programs to spare.
        tiles = max(1, min(8, blocks_m * c_blocks // (_PROGRAMS // 2)))
        slices = cdiv(blocks_m, tiles)
        rows = _rows_per_program(slices * c_blocks, max(g.H, g.OH), g.K)
        grid = (slices * c_blocks, cdiv(max(g.H, g.OH), rows))
        # A group's rows are all loaded at once: pipelining them as well only costs registers.
        group = 4 if g.K <= 7 else 2
        sizes |= {"strips": strips, "windows": g.B * strips, "c_blocks": c_blocks, "tiles": tiles, "rows": rows}
        consts = {"K": g.K, "PAD": g.pad, "SUM": total}
        args = sizes | consts | {"BLOCK_C": block_c, "BLOCK_M": block_m, "OUT": out, "WIDTH": width, "GROUP": group}
        return Plan(depthwise_matrix_dw_kernel, grid, args, slices * grid[1], warps, 1)
    block_c = min(32, _pow2(g.C)) if channels_last else 2
    block_p = 512 // block_c if channels_last else 256
    positions, c_blocks = g.B * g.OH * g.OW, cdiv(g.C, block_c)
    blocks_p = cdiv(positions, block_p)
    tiles = max(1, min(64, blocks_p * c_blocks * g.K // _PROGRAMS))
    slices = cdiv(blocks_p, tiles)
    sizes |= {"pad": g.pad, "positions": positions, "c_blocks": c_blocks, "tiles": tiles}
    consts = {"K": g.K, "STRIDE": g.stride, "SUM": total, "BLOCK_C": block_c, "BLOCK_P": block_p}
    return Plan(depthwise_direct_dw_kernel, (slices * c_blocks, g.K), sizes | consts, slices, 4, 2)
