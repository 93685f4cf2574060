"""Which depthwise kernel runs at which shape, with which blocks, and its launch on given tensors.

The audit makes the same launches from tensors on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitkernels.depthwise.direct import depthwise_direct_dw_kernel, depthwise_direct_dx_kernel, depthwise_direct_kernel
from vitkernels.depthwise.matrix import depthwise_matrix_dw_kernel, depthwise_matrix_kernel
from vitkernels.depthwise.offsets import needs_64_bits
from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.device import INTERPRETED, MULTIPROCESSORS

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


class Plan(NamedTuple):
    """A launch that lacks its tensors and their strides, and how many rows of partial sums it writes."""

    call: Call
    slices: int

    def given(self, **args: Any) -> Call:
        """The launch with its tensors and strides."""
        return replace(self.call, args={**args, **self.call.args})


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
    """Output rows that a program walks down, where `base` programs a row do: at which the busiest SM has least to do.

    It is busy with two programs at a time.

    A program reads `halo` rows more than it writes, and sets itself up in the time of about four rows.
    """

    def cost(pieces: int) -> tuple[int, int]:
        return cdiv(base * pieces, 2 * MULTIPROCESSORS) * (cdiv(rows, pieces) + halo + 4), pieces

    return cdiv(rows, min(range(1, rows + 1), key=cost))


def _window(k: int, columns: int) -> tuple[int, int]:
    """Outputs that one window of 16 inputs serves, and their place in the product: 8 or 16.

    A window serves up to 17 - k outputs. The more it serves, the fewer inputs belong to two windows and are read twice;
    8 are better where a row would leave much of its last window empty (14 at 3 x 3: rows of 56, 28 and 14 fill theirs).
    """
    most = 17 - k
    return (most, 16) if most > 8 and 16 * cdiv(columns, most) <= 1.2 * 8 * cdiv(columns, 8) else (8, 8)


def _channels(n: int) -> int:
    """Channels of a direct kernel's tile: 64, or what divides n where 64 would leave much of the last tile empty."""
    most, divides = min(64, _pow2(n)), n & -n
    return divides if n % most and divides >= 16 else most


@lru_cache(maxsize=4096)
def _plan_conv(pass_name: str, g: Geometry, flags: Flags, *, matrix: bool, precise: bool, channels_last: bool) -> Plan:
    """The forward kernel, or with `flags.grad` its gradient-of-the-epilogue form."""
    sizes = {"C": g.C, "H": g.H, "W": g.W, "OH": g.OH, "OW": g.OW, "pad": g.pad}
    if matrix:
        # A tile of 16 windows and 8 channels for four warps: of larger ones the accumulators leave an SM fewer warps,
        # which costs more than that neighbouring programs read the other half of each sector.
        block_c, block_m = 8, 16
        wide = channels_last and g.C % 8 == 0
        out, width = _window(g.K, g.OW) if wide or not flags.grad else (8, 8)
        strips, c_blocks = cdiv(g.OW, out), cdiv(g.C, block_c)
        tiles = cdiv(g.B * strips, block_m)
        rows = _rows_per_program(tiles * c_blocks, g.OH, g.K - 1)
        grid = (tiles * c_blocks, cdiv(g.OH, rows))
        blocks = {"BLOCK_C": block_c, "BLOCK_M": block_m, "OUT": out, "WIDTH": width}
        sizes |= {"strips": strips, "windows": g.B * strips, "c_blocks": c_blocks, "rows": rows}
        whole = out == width and g.OW % out == 0 and g.B * strips % block_m == 0
        args = sizes | {"K": g.K, "WHOLE": whole} | _flag_args(flags) | blocks
        # num_stages is one more than the rows that are loaded ahead. About 32 KiB on their way to an SM hide the time
        # that memory takes: two rows for each of two programs, four for a program alone on its SM. One row where more
        # would take registers that are not there: with narrow loads, with the sums, in the gradient at 5 x 5.
        # Without a limit on registers ptxas spills a little here and there so that one program more fits.
        if flags.grad or (wide and g.K > 7):
            limit = None
        elif g.K > 7:
            limit = 224  # two programs an SM
        else:  # four where tiles are many and the epilogue is long, else three
            limit = 128 if wide and width > 8 and flags.pre and flags.activation != "none" else 168
        alone = grid[0] * grid[1] <= MULTIPROCESSORS
        few = not wide or (width > 8 and flags.stats and not flags.grad) or (flags.grad and g.K in (5, 7))
        stages = 2 if few else 5 if alone else 3
        call = Call(
            kernel=depthwise_matrix_kernel, args=args, grid=grid, pass_name=pass_name, num_stages=stages,
            options={} if limit is None else {"maxnreg": limit},
        )  # fmt: skip
        return Plan(call, tiles * grid[1])
    # A tile is eight or sixteen elements of each thread, along the contiguous axis.
    elements = 1024
    # Outputs that share inputs, as many as fit in registers; where nothing is shared, one.
    fewer = g.stride > 1 or g.K > 5 or flags.grad
    columns = (1 if g.stride >= g.K else 2 if fewer else 4) if channels_last else 1
    block_c, warps = _channels(g.C) if channels_last else 2, 4
    if channels_last and not precise and g.stride >= g.K > 4:  # many taps: few programs, each with much on its way
        block_c, warps = min(32, block_c), 2
    block_p = elements // block_c if channels_last else 128
    strips = cdiv(g.OW, columns)
    positions = g.B * g.OH * strips
    tiles, c_blocks = cdiv(positions, block_p), cdiv(g.C, block_c)
    sizes |= {"strips": strips, "positions": positions, "c_blocks": c_blocks}
    consts = {"K": g.K, "STRIDE": g.stride, "PRECISE": precise}
    blocks = {"BLOCK_C": block_c, "BLOCK_P": block_p, "COLUMNS": columns}
    args = sizes | consts | _flag_args(flags) | blocks
    call = Call(
        kernel=depthwise_direct_kernel, args=args, grid=(tiles * c_blocks, 1), pass_name=pass_name, num_warps=warps
    )
    return Plan(call, tiles)


@lru_cache(maxsize=4096)
def _plan_dx(g: Geometry, *, precise: bool, channels_last: bool) -> Plan:
    """The input's gradient at stride > 1."""
    block_c = _channels(g.C) if channels_last else 2
    block_p = (512 if precise else 1024) // block_c if channels_last else 256
    positions = g.B * g.H * g.W
    tiles, c_blocks = cdiv(positions, block_p), cdiv(g.C, block_c)
    sizes = {"C": g.C, "H": g.H, "W": g.W, "OH": g.OH, "OW": g.OW, "pad": g.pad}
    sizes |= {"positions": positions, "c_blocks": c_blocks}
    consts = {"K": g.K, "STRIDE": g.stride, "BLOCK_C": block_c, "BLOCK_P": block_p}
    grid = (tiles * c_blocks, 1)
    return Plan(Call(kernel=depthwise_direct_dx_kernel, args=sizes | consts, grid=grid, pass_name="bwd_dx"), 0)


@lru_cache(maxsize=4096)
def _plan_dw(g: Geometry, *, matrix: bool, total: bool, channels_last: bool) -> Plan:
    """The weight's gradient, and with `total` the per-channel sum of du; `slices` partial results to be added up."""
    sizes = {"C": g.C, "H": g.H, "W": g.W, "OH": g.OH, "OW": g.OW}
    if matrix:
        block_c, block_m, warps = 8, 16, 4
        out, width = _window(g.K, g.OW) if g.C % 8 == 0 or not channels_last else (8, 8)
        strips = cdiv(g.OW, out)
        c_blocks, blocks_m = cdiv(g.C, block_c), cdiv(g.B * strips, block_m)
        # The diagonals are summed once per program: give each several tiles when there are programs to spare.
        tiles = max(1, min(8, blocks_m * c_blocks // (_PROGRAMS // 2)))
        slices = cdiv(blocks_m, tiles)
        rows = _rows_per_program(slices * c_blocks, max(g.H, g.OH), g.K)
        grid = (slices * c_blocks, cdiv(max(g.H, g.OH), rows))
        # A group's rows are all loaded at once: pipelining them as well only costs registers.
        group = (4 if channels_last or g.K > 3 else 3) if g.K <= 7 else 2
        sizes |= {"strips": strips, "windows": g.B * strips, "c_blocks": c_blocks, "tiles": tiles, "rows": rows}
        consts = {"K": g.K, "PAD": g.pad, "SUM": total}
        args = sizes | consts | {"BLOCK_C": block_c, "BLOCK_M": block_m, "OUT": out, "WIDTH": width, "GROUP": group}
        call = Call(
            kernel=depthwise_matrix_dw_kernel, args=args, grid=grid, pass_name="bwd_dw", num_warps=warps, num_stages=1
        )
        return Plan(call, slices * grid[1])
    block_c = min(32, _channels(g.C)) if channels_last else 2
    block_p = 512 // block_c if channels_last else 256
    positions, c_blocks = g.B * g.OH * g.OW, cdiv(g.C, block_c)
    blocks_p = cdiv(positions, block_p)
    tiles = max(1, min(64, blocks_p * c_blocks * g.K // _PROGRAMS))
    slices = cdiv(blocks_p, tiles)
    sizes |= {"pad": g.pad, "positions": positions, "c_blocks": c_blocks, "tiles": tiles}
    consts = {"K": g.K, "STRIDE": g.stride, "SUM": total, "BLOCK_C": block_c, "BLOCK_P": block_p}
    grid = (slices * c_blocks, g.K)
    return Plan(Call(kernel=depthwise_direct_dw_kernel, args=sizes | consts, grid=grid, pass_name="bwd_dw"), slices)


def is_channels_last(x: Tensor) -> bool:
    """Whether a result for x is laid out with channels innermost."""
    return not x.is_contiguous() and x.stride(1) <= x.stride(3)


def on_matrix_unit(x: Tensor, stride: int) -> bool:
    """Whether the matrix-unit kernels serve this convolution; interpreted bf16 products would be wrong."""
    if x.dtype == torch.bfloat16:
        return stride == 1 and (not INTERPRETED or x.is_meta)
    return stride == 1 and x.dtype == torch.float16


def _precise(dtype: torch.dtype) -> bool:
    """Whether results show more than the fast activations compute; the interpreter also takes fp64."""
    return dtype not in (torch.float16, torch.bfloat16)


def _strides(letter: str, t: Tensor) -> dict[str, int]:
    return {f"stride_{letter}{axis}": s for axis, s in zip("bchw", t.stride(), strict=True)}


def _direct_taps(weight: Tensor, channels_last: bool) -> dict[str, Any]:
    """The weight for the direct kernels; a small copy puts channels innermost, so that a thread reads its taps wide."""
    k = weight.shape[-1]
    taps = weight.reshape(-1, k * k)
    taps = taps.t().contiguous().t() if channels_last else taps.contiguous()
    return {"w_ptr": taps, "stride_wc": taps.stride(0), "stride_wt": taps.stride(1)}


def conv_call(
    pass_name: str,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    g: Geometry,
    flags: Flags,
    *,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    res: Tensor | None = None,
    dstats: Tensor | None = None,
) -> tuple[Call, Tensor | None]:
    """The launch of the forward kernel, or of its gradient form, into out; and its partial sums, if it has any.

    Args:
        out: [B, C, OH, OW]; x: [B, C, H, W]; weight: [C, 1, K, K]; bias, scale, shift: [C].
        res: like out, what is added last or, with `flags.grad`, the result's gradient.
        dstats: [2, C] fp32, the gradients of the sums.

    Returns: the launch and [slices, rows, C] fp32, of which rows (a, a^2) or, with `flags.grad`, (du, dy a, dy).
    """
    matrix, layout = on_matrix_unit(x, g.stride), is_channels_last(x)
    plan = _plan_conv(pass_name, g, flags, matrix=matrix, precise=_precise(x.dtype), channels_last=layout)
    taps = {"w_ptr": weight.contiguous()} if matrix else _direct_taps(weight, layout)
    rows = 3 if flags.grad else 2 if flags.stats else 0
    part = torch.empty((plan.slices, rows, g.C), dtype=torch.float32, device=x.device) if rows else None
    call = plan.given(
        y_ptr=out, part_ptr=part, x_ptr=x, **taps, bias_ptr=bias, scale_ptr=scale, shift_ptr=shift, res_ptr=res,
        dstats_ptr=dstats, **_strides("x", x), **_strides("y", out), **_strides("r", out if res is None else res),
        WIDE=needs_64_bits(x, out, out if res is None else res),
    )  # fmt: skip
    return call, part


def dx_call(dx: Tensor, du: Tensor, weight: Tensor, g: Geometry) -> Call:
    """The launch that takes du, the gradient of a strided convolution's result, to its input's."""
    layout = is_channels_last(dx)
    plan = _plan_dx(g, precise=_precise(dx.dtype), channels_last=layout)
    taps = _direct_taps(weight, layout)
    return plan.given(
        dx_ptr=dx, du_ptr=du, **taps, **_strides("x", dx), **_strides("d", du), WIDE=needs_64_bits(dx, du)
    )


def dw_call(x: Tensor, du: Tensor, g: Geometry, *, total: bool) -> tuple[Call, Tensor]:
    """The launch for the weight's gradient, and with `total` for the sums of du in a last row.

    Returns: the launch and its partial sums, [slices, K * K + 1, C] fp32.
    """
    plan = _plan_dw(g, matrix=on_matrix_unit(x, g.stride), total=total, channels_last=is_channels_last(x))
    part = torch.empty((plan.slices, g.K * g.K + 1, g.C), dtype=torch.float32, device=x.device)
    call = plan.given(
        x_ptr=x, du_ptr=du, part_ptr=part, **_strides("x", x), **_strides("d", du), WIDE=needs_64_bits(x, du)
    )
    return call, part
