"""Depthwise convolution by fp32 multiply-adds: any stride, any of the dtypes; fp32 and strided convolutions run here.

A thread holds neighbouring channels (channels_last: 16-byte loads) or columns (NCHW), and COLUMNS outputs of one row
share the inputs they have in common. The gradient of the input at stride > 1 gathers only the ceil(k / stride)^2 taps
whose phase fits; at stride 1 it is the forward kernel with the taps reversed.
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
def depthwise_direct_kernel(
    y_ptr,  # [B, C, OH, OW]: the result, or with GRAD the gradient of the convolution's result
    part_ptr,  # [slices, rows, C] fp32 partial sums: (a, a^2) with STATS, (du, dy a, dy) with GRAD
    x_ptr,  # [B, C, H, W]
    w_ptr,  # [C, K * K], channels innermost where x's are
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
    stride_wc,
    stride_wt,
    C,
    H,
    W,
    OH,
    OW,
    pad,
    strips,  # strips of COLUMNS outputs in a row
    positions,  # B * OH * strips
    c_blocks,  # ceil(C / BLOCK_C)
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    ACT: tl.constexpr,
    PRECISE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    PRE: tl.constexpr,
    POST: tl.constexpr,
    STATS: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,  # offsets within an image need 64 bits
):
    stride_xc, stride_xh, stride_xw = widened(stride_xc, stride_xh, stride_xw, WIDE)
    stride_yc, stride_yh, stride_yw = widened(stride_yc, stride_yh, stride_yw, WIDE)
    stride_rc, stride_rh, stride_rw = widened(stride_rc, stride_rh, stride_rw, WIDE)
    pid = tl.program_id(0)
    tile = pid // c_blocks
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_p = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    c = offs_c[None, :]
    mask = (offs_p < positions)[:, None] & (c < C)
    strip = offs_p % strips
    out_row = (offs_p // strips) % OH
    image = (offs_p // strips // OH).to(tl.int64)
    row0 = out_row * STRIDE - pad
    col0 = strip * (COLUMNS * STRIDE) - pad
    x_base = x_ptr + (image * stride_xb + row0 * stride_xh + col0 * stride_xw)[:, None] + c * stride_xc

    start = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    if HAS_BIAS:
        start += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    acc = ()
    for _ in tl.static_range(COLUMNS):
        acc = acc + (start,)
    for ky in range(K):
        inside = mask & ((row0 + ky >= 0) & (row0 + ky < H))[:, None]
        xs = ()
        for j in tl.static_range((COLUMNS - 1) * STRIDE + K):
            here = inside & ((col0 + j >= 0) & (col0 + j < W))[:, None]
            xs = xs + (tl.load(x_base + ky * stride_xh + j * stride_xw, mask=here, other=0.0).to(tl.float32),)
        for kx in tl.static_range(K):
            w = tl.load(w_ptr + c * stride_wc + (ky * K + kx) * stride_wt, mask=c < C, other=0.0).to(tl.float32)
            sums = ()
            for t in tl.static_range(COLUMNS):
                sums = sums + (acc[t] + xs[t * STRIDE + kx] * w,)
            acc = sums

    if HAS_SCALE:
        scale = tl.load(scale_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        shift = tl.load(shift_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    if GRAD and STATS:
        dsum = tl.load(dstats_ptr + c, mask=c < C, other=0.0)
        dsquare = 2.0 * tl.load(dstats_ptr + C + c, mask=c < C, other=0.0)
    part0 = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    part1 = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    part2 = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for t in tl.static_range(COLUMNS):
        out_col = strip * COLUMNS + t
        mask_y = mask & (out_col < OW)[:, None]
        u = acc[t]
        if PRE:  # the input under the kernel's middle, at stride 1
            row = row0 + K // 2
            col = col0 + K // 2 + t
            here = mask & ((row >= 0) & (row < H) & (col >= 0) & (col < W))[:, None]
            u += tl.load(x_base + (K // 2) * stride_xh + (K // 2 + t) * stride_xw, mask=here, other=0.0).to(tl.float32)
        if POST or GRAD:
            at = (image * stride_rb + out_row * stride_rh + out_col * stride_rw)[:, None] + c * stride_rc
            res = tl.load(res_ptr + at, mask=mask_y, other=0.0).to(tl.float32)
        if GRAD:
            a, slope = activate_with_slope(u, ACT, PRECISE)
            part1 += res * a
            part2 += res
            if HAS_SCALE:
                res = res * scale
            if STATS:
                res = tl.where(mask_y, res + dsum + dsquare * a, 0.0)
            y = times_slope(res, slope, ACT)
            part0 += y
        else:
            y = activate(u, ACT, PRECISE)
            if STATS:
                a = tl.where(mask_y, y, 0.0)
                part0 += a
                part1 += a * a
            if HAS_SCALE:
                y = y * scale
            if HAS_SHIFT:
                y = y + shift
            if POST:
                y += res
        at = (image * stride_yb + out_row * stride_yh + out_col * stride_yw)[:, None] + c * stride_yc
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask_y)

    if GRAD or STATS:
        n_parts: tl.constexpr = 3 if GRAD else 2
        part_base = part_ptr + tile.to(tl.int64) * n_parts * C + offs_c
        tl.store(part_base, tl.sum(part0, axis=0), mask=offs_c < C)
        tl.store(part_base + C, tl.sum(part1, axis=0), mask=offs_c < C)
        if GRAD:
            tl.store(part_base + 2 * C, tl.sum(part2, axis=0), mask=offs_c < C)


@triton.jit
def depthwise_direct_dx_kernel(
    dx_ptr,  # [B, C, H, W]
    du_ptr,  # [B, C, OH, OW]
    w_ptr,  # [C, K * K], channels innermost where x's are
    stride_xb,
    stride_xc,
    stride_xh,
    stride_xw,
    stride_db,
    stride_dc,
    stride_dh,
    stride_dw,
    stride_wc,
    stride_wt,
    C,
    H,
    W,
    OH,
    OW,
    pad,
    positions,  # B * H * W
    c_blocks,  # ceil(C / BLOCK_C)
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    WIDE: tl.constexpr,
):
    stride_xc, stride_xh, stride_xw = widened(stride_xc, stride_xh, stride_xw, WIDE)
    stride_dc, stride_dh, stride_dw = widened(stride_dc, stride_dh, stride_dw, WIDE)
    pid = tl.program_id(0)
    c = ((pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    offs_p = (pid // c_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = (offs_p < positions)[:, None] & (c < C)
    col = offs_p % W
    row = (offs_p // W) % H
    image = (offs_p // W // H).to(tl.int64)
    d_base = du_ptr + (image * stride_db)[:, None] + c * stride_dc
    acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for j in tl.static_range((K + STRIDE - 1) // STRIDE):
        ky = (row + pad) % STRIDE + j * STRIDE
        out_row = (row + pad) // STRIDE - j
        fits_row = (ky < K) & (out_row >= 0) & (out_row < OH)
        for i in tl.static_range((K + STRIDE - 1) // STRIDE):
            kx = (col + pad) % STRIDE + i * STRIDE
            out_col = (col + pad) // STRIDE - i
            fits = mask & (fits_row & (kx < K) & (out_col >= 0) & (out_col < OW))[:, None]
            du = tl.load(d_base + (out_row * stride_dh + out_col * stride_dw)[:, None], mask=fits, other=0.0)
            w = tl.load(w_ptr + c * stride_wc + ((ky * K + kx) * stride_wt)[:, None], mask=fits, other=0.0)
            acc += du.to(tl.float32) * w.to(tl.float32)
    at = (image * stride_xb + row * stride_xh + col * stride_xw)[:, None] + c * stride_xc
    tl.store(dx_ptr + at, acc.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def depthwise_direct_dw_kernel(
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
    pad,
    positions,  # B * OH * OW
    c_blocks,  # ceil(C / BLOCK_C)
    tiles,  # blocks of positions that a program sums
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    SUM: tl.constexpr,  # also sum du
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One kernel row (program axis 1) of the weight's gradient over one slice of the positions."""
    stride_xc, stride_xh, stride_xw = widened(stride_xc, stride_xh, stride_xw, WIDE)
    stride_dc, stride_dh, stride_dw = widened(stride_dc, stride_dh, stride_dw, WIDE)
    pid = tl.program_id(0)
    ky = tl.program_id(1)
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    slot = pid // c_blocks
    c = offs_c[None, :]
    acc = ()
    for _ in tl.static_range(K):
        acc = acc + (tl.zeros([BLOCK_P, BLOCK_C], tl.float32),)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for t in range(tiles):
        offs_p = (slot * tiles + t) * BLOCK_P + tl.arange(0, BLOCK_P)
        mask = (offs_p < positions)[:, None] & (c < C)
        out_col = offs_p % OW
        out_row = (offs_p // OW) % OH
        image = (offs_p // OW // OH).to(tl.int64)
        at = (image * stride_db + out_row * stride_dh + out_col * stride_dw)[:, None] + c * stride_dc
        du = tl.load(du_ptr + at, mask=mask, other=0.0).to(tl.float32)
        row = out_row * STRIDE - pad + ky
        inside = mask & ((row >= 0) & (row < H))[:, None]
        x_base = x_ptr + (image * stride_xb + row * stride_xh)[:, None] + c * stride_xc
        sums = ()
        for kx in tl.static_range(K):
            col = out_col * STRIDE - pad + kx
            here = inside & ((col >= 0) & (col < W))[:, None]
            x = tl.load(x_base + (col * stride_xw)[:, None], mask=here, other=0.0).to(tl.float32)
            sums = sums + (acc[kx] + x * du,)
        acc = sums
        if SUM:
            total += du
    part_base = part_ptr + slot.to(tl.int64) * (K * K + 1) * C + offs_c
    for kx in tl.static_range(K):
        tl.store(part_base + (ky * K + kx) * C, tl.sum(acc[kx], axis=0), mask=offs_c < C)
    if SUM and ky == 0:
        tl.store(part_base + K * K * C, tl.sum(total, axis=0), mask=offs_c < C)
