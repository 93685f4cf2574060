"""Depthwise convolution of stride 1 on the matrix unit, for fp16 and bf16 and kernels up to 9 x 9.

OUT neighbouring outputs of a row read a window of OUT + k - 1 <= 16 inputs: for one channel and one kernel row that
is a product [windows, 16] x [16, OUT] with a banded (Toeplitz) matrix of the kernel's taps, one m16n8k16 instruction
for 8 outputs or two for up to 16 (14 at 3 x 3). A program owns BLOCK_C channels and BLOCK_M windows (from several
images where rows are short) and walks down the rows: each input row is loaded once, and multiplied by the k bands into
the accumulators of the k output rows it touches. The accumulators are in fp32 and begin as the bias; "pre" adds one
more band that holds a single 1.

For large kernels this issues half the instructions that k * k multiply-adds alone would. What is read twice is k - 1
columns a window, k - 1 rows a program, and from L2 sectors that a neighbour's channels share. Channels are a batch
dimension, for which neither wgmma nor tcgen05 has a form: HMMA runs on every architecture.

A band's zeros make NaN of an infinity or NaN anywhere in a window. The sum of all that a program computed shows it, and
the program then computes again by multiply-adds, in which an output meets its own taps alone.
"""

# ruff: noqa: RUF005 - Triton joins tuples by + only
# Kernel arguments have Triton types, and tuples change their length as they grow.
# mypy: disable-error-code="no-untyped-def, assignment, misc, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.depthwise.activations import activate, activate_with_slope, times_slope
from vitkernels.depthwise.offsets import widened


@triton.jit
def _summed(x):
    """[C, M / 2, 4] of products x [C, M, WIDTH]: sums of what one thread holds of a channel, which take few registers.

    That is pairs of neighbours of every eight columns, in rows r and r + M / 2.
    """
    x = tl.sum(tl.reshape(x, [x.shape[0], x.shape[1], x.shape[2] // 8, 4, 2]), 4)
    return tl.sum(tl.reshape(tl.sum(x, 2), [x.shape[0], 2, x.shape[1] // 2, 4]), 1)


@triton.jit
def _nothing_yet(shape: tl.constexpr, STATS: tl.constexpr, GRAD: tl.constexpr):
    """Partial sums of a program: three of the gradient, two of the result's statistics, or none."""
    parts = ()
    if GRAD:
        for _ in tl.static_range(3):
            parts = parts + (tl.zeros(shape, tl.float32),)
    elif STATS:
        for _ in tl.static_range(2):
            parts = parts + (tl.zeros([shape[0], shape[1] // 2, 4], tl.float32),)
    return parts


@triton.jit
def _finish_row(u, parts, y_ptrs, r_ptrs, mask_y, vectors, ACT: tl.constexpr, HAS_SCALE: tl.constexpr,
                HAS_SHIFT: tl.constexpr, POST: tl.constexpr, STATS: tl.constexpr, GRAD: tl.constexpr,
                WHOLE: tl.constexpr):  # fmt: skip
    """Stores what the epilogue makes of u [C, M, WIDTH]; the partial sums with this row added."""
    _, scale, shift, dsum, dsquare = vectors
    if GRAD:
        dy = tl.load(r_ptrs, mask=mask_y, other=0.0).to(tl.float32)
        a, slope = activate_with_slope(u, ACT, False)
        part1 = parts[1] + dy * a
        part2 = parts[2] + dy
        if HAS_SCALE:
            dy = dy * scale
        if STATS:
            dy = dy + dsum + dsquare * a
            dy = dy if WHOLE else tl.where(mask_y, dy, 0.0)
        y = times_slope(dy, slope, ACT)
        parts = (parts[0] + y, part1, part2)
    else:
        y = activate(u, ACT, False)
        if STATS:
            a = y if WHOLE else tl.where(mask_y, y, 0.0)
            parts = (parts[0] + _summed(a), parts[1] + _summed(a * a))
        if HAS_SCALE:
            y = y * scale
        if HAS_SHIFT:
            y = y + shift
        if POST:
            y += tl.load(r_ptrs, mask=mask_y, other=0.0).to(tl.float32)
    tl.store(y_ptrs, y.to(y_ptrs.dtype.element_ty), mask=mask_y)
    return parts


@triton.jit
def _store_parts(part_ptr, slot, parts, offs_c, C):
    for i in tl.static_range(len(parts)):
        at = part_ptr + (slot * len(parts) + i) * C + offs_c
        tl.store(at, tl.sum(tl.sum(parts[i], axis=2), axis=1), mask=offs_c < C)


@triton.jit
def _per_channel(bias_ptr, scale_ptr, shift_ptr, dstats_ptr, c, C, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
                 HAS_SHIFT: tl.constexpr, STATS: tl.constexpr, GRAD: tl.constexpr):  # fmt: skip
    """(bias, scale, shift, dsum, dsquare) of channels c in fp32, zero where there is none and beyond C."""
    mask = c < C
    zero = tl.zeros(c.shape, tl.float32)
    bias, scale, shift, dsum, dsquare = zero, zero, zero, zero, zero
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c, mask=mask, other=0.0).to(tl.float32)
    if HAS_SCALE:
        scale = tl.load(scale_ptr + c, mask=mask, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        shift = tl.load(shift_ptr + c, mask=mask, other=0.0).to(tl.float32)
    if GRAD and STATS:
        dsum = tl.load(dstats_ptr + c, mask=mask, other=0.0)
        dsquare = 2.0 * tl.load(dstats_ptr + C + c, mask=mask, other=0.0)
    return bias, scale, shift, dsum, dsquare


@triton.jit
def _channel_by_taps(
    y_ptr, part_ptr, x_ptr, w_ptr, bias_ptr, scale_ptr, shift_ptr, res_ptr, dstats_ptr, stride_xb, stride_xc, stride_xh,
    stride_xw, stride_yb, stride_yc, stride_yh, stride_yw, stride_rb, stride_rc, stride_rh, stride_rw, C, H, W, OH, OW,
    pad, strips, windows, channel, first_window, slot, first_row, end_row, K: tl.constexpr, ACT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, PRE: tl.constexpr, POST: tl.constexpr,
    GRAD: tl.constexpr, WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, OUT: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """What `depthwise_matrix_kernel` computes for one of its channels, by multiply-adds of an output's own taps.

    In a shape of its own, so that the kernel need not keep any of its offsets in registers for it.
    """
    offs = tl.reshape(tl.arange(0, BLOCK_M * WIDTH), [1, BLOCK_M, WIDTH])
    window = first_window + offs // WIDTH
    image = (window // strips).to(tl.int64)
    out_col = window % strips * OUT + offs % WIDTH
    mask_y = (window < windows) & (out_col < OW) & (offs % WIDTH < OUT)
    offs_c = channel + tl.arange(0, 1)
    c = offs_c[:, None, None]
    vectors = _per_channel(
        bias_ptr, scale_ptr, shift_ptr, dstats_ptr, c, C, HAS_BIAS, HAS_SCALE, HAS_SHIFT, False, GRAD
    )
    start = tl.zeros([1, BLOCK_M, WIDTH], tl.float32) + vectors[0]
    parts = _nothing_yet(start.shape, False, GRAD)
    x_image = x_ptr + image * stride_xb + c * stride_xc
    y_image = y_ptr + image * stride_yb + out_col * stride_yw + c * stride_yc
    for out_row in range(first_row, end_row):
        u = start
        for ky in range(K):
            for kx in range(K):
                row, col = out_row - pad + ky, out_col - pad + kx
                here = mask_y & (row >= 0) & (row < H) & (col >= 0) & (col < W)
                x = tl.load(x_image + row * stride_xh + col * stride_xw, mask=here, other=0.0).to(tl.float32)
                u += x * tl.load(w_ptr + c * (K * K) + (ky * K + kx)).to(tl.float32)
                if PRE:
                    u += tl.where((ky == K // 2) & (kx == K // 2), x, 0.0)
        r_ptrs = None
        if POST or GRAD:
            r_ptrs = res_ptr + image * stride_rb + out_row * stride_rh + out_col * stride_rw + c * stride_rc
        parts = _finish_row(
            u, parts, y_image + out_row * stride_yh, r_ptrs, mask_y, vectors, ACT, HAS_SCALE, HAS_SHIFT, POST, False,
            GRAD, WHOLE,
        )  # fmt: skip
    _store_parts(part_ptr, slot, parts, offs_c, C)


@triton.jit
def depthwise_matrix_kernel(
    y_ptr,  # [B, C, OH, OW]: the result, or with GRAD the gradient of the convolution's result
    part_ptr,  # [slices, rows, C] fp32 partial sums: (a, a^2) with STATS, (du, dy a, dy) with GRAD
    x_ptr,  # [B, C, H, W]
    w_ptr,  # [C, K * K]
    bias_ptr,  # [C]
    scale_ptr,  # [C]
    shift_ptr,  # [C]
    res_ptr,  # [B, C, OH, OW]: what POST adds, or with GRAD the gradient of the result
    dstats_ptr,  # [2, C] fp32: with GRAD and STATS the gradients of the sums
    stride_xb,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_yb,
    stride_yc,
    stride_yh,
    stride_yw,
    stride_rb,
    stride_rc,
    stride_rh,
    stride_rw,
    C,
    H,
    W,
    OH,
    OW,
    pad,
    strips,  # windows in a row, ceil(OW / 8)
    windows,  # B * strips
    c_blocks,  # ceil(C / BLOCK_C)
    rows,  # output rows of a program
    K: tl.constexpr,
    ACT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    PRE: tl.constexpr,
    POST: tl.constexpr,
    STATS: tl.constexpr,
    GRAD: tl.constexpr,
    WHOLE: tl.constexpr,  # every window is inside the result: sums need no masks
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    OUT: tl.constexpr,  # outputs of a window, at most 17 - K
    WIDTH: tl.constexpr,  # OUT rounded up to 8 or 16
    WIDE: tl.constexpr,  # offsets within an image need 64 bits
):
    stride_xc, stride_xh, stride_xw = widened(stride_xc, stride_xh, stride_xw, WIDE)
    stride_yc, stride_yh, stride_yw = widened(stride_yc, stride_yh, stride_yw, WIDE)
    stride_rc, stride_rh, stride_rw = widened(stride_rc, stride_rh, stride_rw, WIDE)
    pid = tl.program_id(0)
    first = tl.program_id(1) * rows
    tile = pid // c_blocks
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    image = (offs_m // strips).to(tl.int64)
    strip = offs_m % strips
    offs_k = tl.arange(0, 16)
    offs_n = tl.arange(0, WIDTH)
    c = offs_c[:, None, None]
    mask_c = c < C
    mask_m = offs_m < windows

    tap = offs_k[:, None] - offs_n[None, :]  # [16, 8]: which tap of the kernel row joins input k to output n
    mask_tap = mask_c & ((tap >= 0) & (tap < K) & (offs_n < OUT)[None, :])[None]
    bands = ()
    for ky in tl.static_range(K):
        bands = bands + (tl.load(w_ptr + c * (K * K) + (ky * K + tap)[None], mask=mask_tap, other=0.0),)
    if PRE:
        unit = tl.where(mask_c & (tap == K // 2)[None], 1.0, 0.0).to(bands[0].dtype)

    vectors = _per_channel(
        bias_ptr, scale_ptr, shift_ptr, dstats_ptr, c, C, HAS_BIAS, HAS_SCALE, HAS_SHIFT, STATS, GRAD
    )
    start = tl.zeros([BLOCK_C, BLOCK_M, WIDTH], tl.float32) + vectors[0]

    col = strip[:, None] * OUT - pad + offs_k[None, :]  # [M, 16]
    # Columns that no tap reaches are left out: the overlap of neighbouring windows comes from L2.
    mask_x = mask_c & (mask_m[:, None] & (col >= 0) & (col < W) & (offs_k < OUT + K - 1)[None, :])[None]
    x_base = x_ptr + (image[:, None] * stride_xb + col * stride_xw)[None] + c * stride_xc
    out_col = strip[:, None] * OUT + offs_n[None, :]  # [M, 8]
    mask_y = mask_c & (mask_m[:, None] & (out_col < OW) & (offs_n < OUT)[None, :])[None]
    y_base = y_ptr + (image[:, None] * stride_yb + out_col * stride_yw)[None] + c * stride_yc
    if POST or GRAD:
        r_base = res_ptr + (image[:, None] * stride_rb + out_col * stride_rw)[None] + c * stride_rc

    acc = ()
    for _ in tl.static_range(K):
        acc = acc + (start,)
    parts = _nothing_yet(start.shape, STATS, GRAD)
    total = tl.zeros([BLOCK_C, BLOCK_M // 2, 4], tl.float32)  # of a program that has no partial sums
    # Rows above the image would only shift accumulators that still hold their start.
    for i in range(tl.maximum(pad - first, 0), tl.minimum(rows, OH - first) + K - 1):
        row = first - pad + i
        x = tl.load(x_base + row * stride_xh, mask=mask_x & (row >= 0) & (row < H), other=0.0)  # [C, M, 16]
        touched = ()
        for j in tl.static_range(K):  # output row first + i - (K - 1) + j takes kernel row K - 1 - j
            u = tl.dot(x, bands[K - 1 - j], acc[j])
            if PRE and K - 1 - j == K // 2:
                u = tl.dot(x, unit, u)
            touched = touched + (u,)
        if i >= K - 1:
            out_row = first + i - (K - 1)
            if not GRAD and not STATS:
                total += _summed(touched[0])
            r_ptrs = r_base + out_row * stride_rh if POST or GRAD else None
            parts = _finish_row(
                touched[0], parts, y_base + out_row * stride_yh, r_ptrs, mask_y, vectors, ACT, HAS_SCALE, HAS_SHIFT,
                POST, STATS, GRAD, WHOLE,
            )  # fmt: skip
        acc = touched[1:] + (start,)

    slot = (tile * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    _store_parts(part_ptr, slot, parts, offs_c, C)
    if not STATS:  # a channel's statistics are no numbers anyway, nor is what they normalise
        total = tl.sum(parts[1] if GRAD else total)
        unknown = total - total
        if unknown != unknown:  # infinite or NaN
            first_c = pid % c_blocks * BLOCK_C
            for channel in range(first_c, tl.minimum(first_c + BLOCK_C, C)):
                _channel_by_taps(
                    y_ptr, part_ptr, x_ptr, w_ptr, bias_ptr, scale_ptr, shift_ptr, res_ptr, dstats_ptr, stride_xb,
                    stride_xc, stride_xh, stride_xw, stride_yb, stride_yc, stride_yh, stride_yw, stride_rb, stride_rc,
                    stride_rh, stride_rw, C, H, W, OH, OW, pad, strips, windows, channel, tile * BLOCK_M, slot, first,
                    tl.minimum(first + rows, OH), K, ACT, HAS_BIAS, HAS_SCALE, HAS_SHIFT, PRE, POST, GRAD, WHOLE,
                    BLOCK_M, OUT, WIDTH,
                )  # fmt: skip


@triton.jit
def depthwise_matrix_dw_kernel(
    part_ptr,  # [slices, K * K + 1, C] fp32: the weight's gradient, then the sum of du
    x_ptr,  # [B, C, H, W]
    du_ptr,  # [B, C, OH, OW]
    stride_xb,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_db,
    stride_dc,
    stride_dh,
    stride_dw,
    C,
    H,
    W,
    OH,
    OW,
    strips,
    windows,
    c_blocks,
    tiles,  # blocks of windows that a program sums
    rows,  # rows of x (or of du where it has more) that a program sums
    K: tl.constexpr,
    PAD: tl.constexpr,
    SUM: tl.constexpr,  # also sum du
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    OUT: tl.constexpr,  # columns of du in a window, at most 17 - K
    WIDTH: tl.constexpr,  # OUT rounded up to 8 or 16
    GROUP: tl.constexpr,  # rows of x whose GROUP + K - 1 rows of du are loaded together
    WIDE: tl.constexpr,
):
    """For one kernel row, windows^T x du is [16, 8]; its diagonals, summed, are that row of the weight's gradient."""
    stride_xc, stride_xh, stride_xw = widened(stride_xc, stride_xh, stride_xw, WIDE)
    stride_dc, stride_dh, stride_dw = widened(stride_dc, stride_dh, stride_dw, WIDE)
    pid = tl.program_id(0)
    first = tl.program_id(1) * rows
    last = tl.minimum(first + rows, tl.maximum(H, OH))
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    slice_m = pid // c_blocks
    offs_k = tl.arange(0, 16)
    offs_n = tl.arange(0, WIDTH)
    c = offs_c[:, None, None]
    mask_c = c < C

    acc = ()
    for _ in tl.static_range(K):
        acc = acc + (tl.zeros([BLOCK_C, 16, WIDTH], tl.float32),)
    total = tl.zeros([BLOCK_C, 16, WIDTH], tl.float32)
    ones = tl.full([BLOCK_C, 16, BLOCK_M], 1.0, x_ptr.dtype.element_ty)

    for t in range(tiles):
        offs_m = (slice_m * tiles + t) * BLOCK_M + tl.arange(0, BLOCK_M)
        image = (offs_m // strips).to(tl.int64)
        strip = offs_m % strips
        mask_m = offs_m < windows
        col = strip[None, :] * OUT - PAD + offs_k[:, None]  # [16, M]
        mask_x = mask_c & (mask_m[None, :] & (col >= 0) & (col < W) & (offs_k < OUT + K - 1)[:, None])[None]
        x_base = x_ptr + (image[None, :] * stride_xb + col * stride_xw)[None] + c * stride_xc
        out_col = strip[:, None] * OUT + offs_n[None, :]  # [M, 8]
        mask_d = mask_c & (mask_m[:, None] & (out_col < OW) & (offs_n < OUT)[None, :])[None]
        d_base = du_ptr + (image[:, None] * stride_db + out_col * stride_dw)[None] + c * stride_dc
        for g in range(first, last, GROUP):
            dus = ()
            for j in tl.static_range(GROUP + K - 1):
                row = g + (PAD - (K - 1) + j)
                dus = dus + (tl.load(d_base + row * stride_dh, mask=mask_d & (row >= 0) & (row < OH), other=0.0),)
            for i in tl.static_range(GROUP):
                row = g + i
                x = tl.load(x_base + row * stride_xh, mask=mask_x & (row < last) & (row < H), other=0.0)  # [C, 16, M]
                sums = ()
                for ky in tl.static_range(K):
                    sums = sums + (tl.dot(x, dus[i + K - 1 - ky], acc[ky]),)
                acc = sums
                if SUM:
                    inside = tl.where((row < last) & (offs_k < 16), 1.0, 0.0).to(x.dtype)[None, :, None]
                    total = tl.dot(ones * inside, dus[i + K - 1 - PAD], total)

    mask = offs_c < C
    slot = (slice_m * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    part_base = part_ptr + slot * (K * K + 1) * C + offs_c
    tap = (offs_k[:, None] - offs_n[None, :])[None]
    for kx in range(K):
        for ky in tl.static_range(K):
            band = tl.where(tap == kx, acc[ky], 0.0)
            tl.store(part_base + (ky * K + kx) * C, tl.sum(tl.sum(band, axis=2), axis=1), mask=mask)
    if SUM:
        first_row = tl.where(offs_k[None, :, None] == 0, total, 0.0)
        tl.store(part_base + K * K * C, tl.sum(tl.sum(first_row, axis=2), axis=1), mask=mask)
