"""CMT's attention sub-block in two kernels, for inference where its weights fit on chip (C <= 128).

The prologue reads x once, normalises each token on the fly, reduces r x r tokens to one by the depthwise taps, applies
the evaluated batch norm and projects keys and values (small). The main kernel reads x once more and writes y once: a
program holds the projections, keys and values of one image on chip and walks over tiles of its rows: layer norm ->
query -> scores against all keys -> single-pass softmax -> values -> output projection -> + x.
"""

# ruff: noqa: RUF005 - Triton joins tuples by + only
# Kernel arguments have Triton types, and tuples change their length as they grow.
# mypy: disable-error-code="no-untyped-def, assignment, misc, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.runtime.constants import LOG2E, OUTSIDE


@triton.jit
def normalise(x, gain, offset, mask, C, eps):
    """Layer norm of an fp32 tile [rows, C padded]; gain, offset and mask are [1, C padded]."""
    mean = tl.sum(x, axis=1) / C
    x = tl.where(mask, x - mean[:, None], 0.0)
    variance = tl.sum(x * x, axis=1) / C
    return x * tl.rsqrt(variance + eps)[:, None] * gain + offset


@triton.jit
def reduced_kv_kernel(
    k_ptr,  # [B, M, C]
    v_ptr,  # [B, M, C]
    x_ptr,  # [B, N, C], N = h * w tokens by rows
    gain_ptr,  # [C], layer norm
    offset_ptr,  # [C]
    taps_ptr,  # [C, R * R], depthwise reduction; unused at R = 1
    scale_ptr,  # [C], the evaluated batch norm with the reduction's bias folded in; unused at R = 1
    shift_ptr,  # [C]
    wk_ptr,  # [C, C]
    bk_ptr,  # [C]
    wv_ptr,  # [C, C]
    bv_ptr,  # [C]
    stride_xb,
    stride_xn,
    width,  # w
    reduced_width,  # w // R
    M,  # reduced tokens of an image
    C,
    rows,  # B * M
    eps,
    R: tl.constexpr,
    HAS_BK: tl.constexpr,
    HAS_BV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_c = tl.arange(0, BLOCK_C)
    dtype = k_ptr.dtype.element_ty
    c = offs_c[None, :]
    mask_c = c < C
    mask = (offs_m < rows)[:, None] & mask_c
    image = (offs_m // M).to(tl.int64)
    row = (offs_m % M) // reduced_width * R
    col = (offs_m % M) % reduced_width * R
    gain = tl.load(gain_ptr + c, mask=mask_c, other=0.0).to(tl.float32)
    offset = tl.load(offset_ptr + c, mask=mask_c, other=0.0).to(tl.float32)
    stride_xn = tl.cast(stride_xn, tl.int64)
    base = x_ptr + (image * stride_xb + (row * width + col) * stride_xn)[:, None] + c
    if R == 1:
        x = tl.load(base, mask=mask, other=0.0).to(tl.float32)
        reduced = normalise(x, gain, offset, mask_c, C, eps)
    else:
        reduced = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
        for i in tl.range(R * R, loop_unroll_factor=R):  # so many loads are on their way at once
            x = tl.load(base + (i // R * width + i % R) * stride_xn, mask=mask, other=0.0).to(tl.float32)
            tap = tl.load(taps_ptr + c * (R * R) + i, mask=mask_c, other=0.0).to(tl.float32)
            reduced += normalise(x, gain, offset, mask_c, C, eps) * tap
        scale = tl.load(scale_ptr + c, mask=mask_c, other=0.0)
        reduced = reduced * scale + tl.load(shift_ptr + c, mask=mask_c, other=0.0)
    reduced = reduced.to(dtype)
    square = offs_c[:, None] + c * C  # element (in, out) of a weight [out, in]
    mask_w = (offs_c < C)[:, None] & mask_c
    out = offs_m.to(tl.int64)[:, None] * C + c
    w = tl.load(wk_ptr + square, mask=mask_w, other=0.0)
    k = tl.dot(reduced, w)
    if HAS_BK:
        k += tl.load(bk_ptr + c, mask=mask_c, other=0.0).to(tl.float32)
    tl.store(k_ptr + out, k.to(dtype), mask=mask)
    w = tl.load(wv_ptr + square, mask=mask_w, other=0.0)
    v = tl.dot(reduced, w)
    if HAS_BV:
        v += tl.load(bv_ptr + c, mask=mask_c, other=0.0).to(tl.float32)
    tl.store(v_ptr + out, v.to(dtype), mask=mask)


@triton.jit
def reduced_block_kernel(
    y_ptr,  # [B, N, C]
    x_ptr,  # [B, N, C]
    k_ptr,  # [B, M, C]
    v_ptr,  # [B, M, C]
    bias_ptr,  # [HEADS, N, M], or expanded [HEADS, N, BLOCK_M]
    gain_ptr,  # [C], layer norm
    offset_ptr,  # [C]
    wq_ptr,  # [C, C]
    bq_ptr,  # [C]
    wo_ptr,  # [C, C]
    bo_ptr,  # [C]
    stride_xb,
    stride_xn,
    N,
    M,
    C,
    tiles,  # tiles of rows that a program walks over
    groups,  # programs of an image
    eps,
    scale,  # of the scores; times log2(e), as the bias is, where EXPANDED
    HEADS: tl.constexpr,
    D: tl.constexpr,  # channels of a head
    HAS_BQ: tl.constexpr,
    HAS_BO: tl.constexpr,
    EXPANDED: tl.constexpr,  # the bias is in units of log2, -inf beyond M
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    image = (tl.program_id(0) // groups).to(tl.int64)
    first = (tl.program_id(0) % groups) * tiles
    offs_c = tl.arange(0, BLOCK_C)
    offs_d = tl.arange(0, BLOCK_D)
    offs_m = tl.arange(0, BLOCK_M)
    dtype = x_ptr.dtype.element_ty
    c = offs_c[None, :]
    mask_c = c < C
    mask_m = (offs_m < M)[None, :]
    gain = tl.load(gain_ptr + c, mask=mask_c, other=0.0).to(tl.float32)
    offset = tl.load(offset_ptr + c, mask=mask_c, other=0.0).to(tl.float32)
    wqs, bqs, ks, vs, wos = (), (), (), (), ()
    for h in tl.static_range(HEADS):
        at = h * D + offs_d
        in_d = offs_d < D
        mask_w = (offs_c < C)[:, None] & in_d[None, :]
        wqs = wqs + (tl.load(wq_ptr + at[None, :] * C + offs_c[:, None], mask=mask_w, other=0.0),)  # [C, D]
        if HAS_BQ:
            bqs = bqs + (tl.load(bq_ptr + at, mask=in_d, other=0.0).to(tl.float32)[None, :],)
        key = k_ptr + image * M * C + offs_m[None, :] * C + at[:, None]
        ks = ks + (tl.load(key, mask=in_d[:, None] & mask_m, other=0.0),)  # [D, M]
        value = v_ptr + image * M * C + offs_m[:, None] * C + at[None, :]
        vs = vs + (tl.load(value, mask=(offs_m < M)[:, None] & in_d[None, :], other=0.0),)  # [M, D]
        wos = wos + (tl.load(wo_ptr + c * C + at[:, None], mask=in_d[:, None] & mask_c, other=0.0),)  # [D, C]

    for t in range(tiles):
        offs_n = (first + t) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (offs_n < N)[:, None] & mask_c
        rows = image * stride_xb + offs_n.to(tl.int64) * stride_xn
        x = tl.load(x_ptr + rows[:, None] + c, mask=mask, other=0.0).to(tl.float32)
        tokens = normalise(x, gain, offset, mask_c, C, eps).to(dtype)
        acc = x
        for h in tl.static_range(HEADS):
            q = tl.dot(tokens, wqs[h])  # [N, D]
            if HAS_BQ:
                q += bqs[h]
            scores = tl.dot((q * scale).to(dtype), ks[h])  # [N, M]
            if EXPANDED:
                bias = bias_ptr + h * N * BLOCK_M + tl.minimum(offs_n, N - 1)[:, None] * BLOCK_M + offs_m[None, :]
                scores += tl.load(bias)
            else:
                bias = bias_ptr + h * N * M + offs_n[:, None] * M + offs_m[None, :]
                scores += tl.load(bias, mask=(offs_n < N)[:, None] & mask_m, other=0.0).to(tl.float32)
                scores = tl.where(mask_m, scores, OUTSIDE)
            below = scores - tl.max(scores, axis=1)[:, None]
            p = tl.exp2(below if EXPANDED else below * LOG2E)
            out = tl.dot(p.to(dtype), vs[h]) / tl.sum(p, axis=1)[:, None]
            acc = tl.dot(out.to(dtype), wos[h], acc)
        if HAS_BO:
            acc += tl.load(bo_ptr + c, mask=mask_c, other=0.0).to(tl.float32)
        y_rows = (image * N + offs_n.to(tl.int64)) * C
        tl.store(y_ptr + y_rows[:, None] + c, acc.to(dtype), mask=mask)
