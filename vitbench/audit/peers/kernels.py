"""Kernels as people write them, for the operations of vitkernels: what ours must be ahead of."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def textbook_attention(
    o_ptr, q_ptr,  # [B, N, H, D]
    k_ptr, v_ptr,  # [B, M, H, D]
    bias_ptr,  # [H, N, P], P being M in whole blocks of keys; hugely negative beyond M
    heads, n, m, d, scale, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Streaming attention with a dense bias, which somebody has padded, so that it is read by whole vectors."""
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    offs_m, offs_d = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    rows = (offs_m[:, None] < n) & (offs_d[None, :] < d)
    q_at = b.to(tl.int64) * n * heads * d + offs_m[:, None] * heads * d + h * d + offs_d[None, :]
    q = tl.load(q_ptr + q_at, mask=rows, other=0.0)
    kv = b.to(tl.int64) * m * heads * d + h * d
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    bias_at = (h * n + tl.minimum(offs_m, n - 1))[:, None] * (tl.cdiv(m, BLOCK_N) * BLOCK_N)
    for start in range(0, m, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        keys = (offs_n[:, None] < m) & (offs_d[None, :] < d)
        kv_at = kv + offs_n[:, None] * heads * d + offs_d[None, :]
        k = tl.load(k_ptr + kv_at, mask=keys, other=0.0)
        bias = tl.load(bias_ptr + bias_at + offs_n[None, :])
        scores = (tl.dot(q, tl.trans(k)) * scale + bias) * _LOG2_E
        higher = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + kv_at, mask=keys, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = higher
    tl.store(o_ptr + q_at, (acc / total[:, None]).to(o_ptr.dtype.element_ty), mask=rows)


@triton.jit
def flex_attention(
    o_ptr, q_ptr,  # [B, N, H, D]
    k_ptr, v_ptr,  # [B, M, H, D]
    bias_ptr,  # [H, N, M]
    blocks_ptr, indices_ptr,  # of blocks of keys that are not masked: one that holds all
    n: tl.constexpr, m: tl.constexpr, d: tl.constexpr, heads: tl.constexpr, scale: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SPARSE: tl.constexpr,
):  # fmt: skip
    """What FlexAttention's template does with a captured bias and no block mask: the same order of operations."""
    b, h = tl.program_id(1), tl.program_id(2)
    EVEN: tl.constexpr = n % 128 == 0 and m % 128 == 0
    offs_m, offs_d = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    rows = (offs_m[:, None] < n) & (offs_d[None, :] < d)
    q_at = b * n * heads * d + offs_m[:, None] * heads * d + h * d + offs_d[None, :]
    q = tl.load(q_ptr + q_at, mask=rows, other=0.0)
    kv = b * m * heads * d + h * d
    first = tl.load(indices_ptr) * SPARSE
    blocks = tl.load(blocks_ptr)
    stop = tl.minimum(blocks * (SPARSE // BLOCK_N), tl.maximum(tl.cdiv(m, BLOCK_N), 1))
    top = tl.zeros((BLOCK_M,), tl.float32) - float("inf")
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    offs_n = first + tl.arange(0, BLOCK_N)
    for step in range(stop):
        keys = (offs_n[:, None] < m) & (offs_d[None, :] < d)
        kv_at = kv + offs_n[:, None] * heads * d + offs_d[None, :]
        k = tl.load(k_ptr + kv_at, mask=keys, other=0.0)
        scores = tl.dot(q, tl.trans(k)) * scale
        if EVEN:
            scores = scores + tl.load(bias_ptr + h * n * m + offs_m[:, None] * m + offs_n[None, :])
        else:
            # Indices wrap around instead of being masked.
            scores = scores + tl.load(bias_ptr + h * n * m + (offs_m % n)[:, None] * m + (offs_n % m)[None, :])
            scores = tl.where(offs_n[None, :] < m, scores, float("-inf"))
        scores *= 1.44269504
        higher = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0, higher)
        shrink = tl.exp2(top - safe)
        p = tl.exp2(scores - safe[:, None])
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + kv_at, mask=keys, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        top = higher
        # On to the next block that is not masked, wherever it is.
        at = step // (SPARSE // BLOCK_N)
        now = tl.load(indices_ptr + at, eviction_policy="evict_last")
        then = tl.load(indices_ptr + at + 1, eviction_policy="evict_last", mask=at + 1 < blocks, other=0)
        jumps = (step + 1) % (SPARSE // BLOCK_N) == 0
        jump = (then - now) * SPARSE - (SPARSE // BLOCK_N - 1) * BLOCK_N
        offs_n += jump * jumps + (1 - jumps) * BLOCK_N
    total = tl.where(total == 0.0, 1, total)
    tl.store(o_ptr + q_at, (acc / total[:, None]).to(o_ptr.dtype.element_ty), mask=rows)


@triton.jit
def attention_delta(delta_ptr, o_ptr, do_ptr, heads, n, d, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Sums of o * do over a head's channels, [B, H, N] of [B, N, H, D]."""
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    rows, offs_d = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    inside = (rows[:, None] < n) & (offs_d[None, :] < d)
    at = b.to(tl.int64) * n * heads * d + rows[:, None] * heads * d + h * d + offs_d[None, :]
    o = tl.load(o_ptr + at, mask=inside, other=0.0).to(tl.float32)
    do = tl.load(do_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(delta_ptr + tl.program_id(1) * n + rows, tl.sum(o * do, 1), mask=rows < n)


@triton.jit
def attention_keys(
    dk_ptr, dv_ptr, q_ptr, k_ptr, v_ptr, do_ptr, bias_ptr,  # as forward
    lse_ptr, delta_ptr,  # [B, H, N]: log2 of the softmax's denominators, and of attention_delta
    heads, n, m, d, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys, while queries stream by."""
    b, h = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    stride = heads * d
    q_base, kv_base, row, table = b * n * stride + h * d, b * m * stride + h * d, (b * heads + h) * n, h * n * m
    offs_n, offs_d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    keys = (offs_n[:, None] < m) & (offs_d[None, :] < d)
    kv_at = kv_base + offs_n[:, None] * stride + offs_d[None, :]
    k = tl.load(k_ptr + kv_at, mask=keys, other=0.0)
    v = tl.load(v_ptr + kv_at, mask=keys, other=0.0)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, n, BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        rows = (offs_m[:, None] < n) & (offs_d[None, :] < d)
        q_at = q_base + offs_m[:, None] * stride + offs_d[None, :]
        q = tl.load(q_ptr + q_at, mask=rows, other=0.0)
        do = tl.load(do_ptr + q_at, mask=rows, other=0.0)
        lse = tl.load(lse_ptr + row + offs_m, mask=offs_m < n, other=0.0)
        delta = tl.load(delta_ptr + row + offs_m, mask=offs_m < n, other=0.0)
        inside = (offs_n[:, None] < m) & (offs_m[None, :] < n)
        bias = tl.load(bias_ptr + table + offs_m[None, :] * m + offs_n[:, None], mask=inside, other=0.0)
        p = tl.exp2((tl.dot(k, tl.trans(q)) * scale + bias) * _LOG2_E - lse[None, :])
        p = tl.where(inside, p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv)
        ds = p * (tl.dot(v, tl.trans(do)) - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk)
    tl.store(dk_ptr + kv_at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=keys)
    tl.store(dv_ptr + kv_at, dv.to(dv_ptr.dtype.element_ty), mask=keys)


@triton.jit
def attention_queries(
    dq_ptr, dbias_ptr, q_ptr, k_ptr, v_ptr, do_ptr, bias_ptr, lse_ptr, delta_ptr, heads, n, m, d, scale, first,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries, while keys stream by, and their part of the bias's gradient, added up in zeros; the
    programs before the one numbered `first` do something else."""
    b, h = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    stride = heads * d
    q_base, kv_base, row, table = b * n * stride + h * d, b * m * stride + h * d, (b * heads + h) * n, h * n * m
    offs_m, offs_d = (tl.program_id(0) - first) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    rows = (offs_m[:, None] < n) & (offs_d[None, :] < d)
    q_at = q_base + offs_m[:, None] * stride + offs_d[None, :]
    q = tl.load(q_ptr + q_at, mask=rows, other=0.0)
    do = tl.load(do_ptr + q_at, mask=rows, other=0.0)
    lse = tl.load(lse_ptr + row + offs_m, mask=offs_m < n, other=0.0)
    delta = tl.load(delta_ptr + row + offs_m, mask=offs_m < n, other=0.0)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, m, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        keys = (offs_n[:, None] < m) & (offs_d[None, :] < d)
        kv_at = kv_base + offs_n[:, None] * stride + offs_d[None, :]
        k = tl.load(k_ptr + kv_at, mask=keys, other=0.0)
        v = tl.load(v_ptr + kv_at, mask=keys, other=0.0)
        inside = (offs_m[:, None] < n) & (offs_n[None, :] < m)
        bias_at = table + offs_m[:, None] * m + offs_n[None, :]
        bias = tl.load(bias_ptr + bias_at, mask=inside, other=0.0)
        p = tl.exp2((tl.dot(q, tl.trans(k)) * scale + bias) * _LOG2_E - lse[:, None])
        ds = tl.where(inside, p * (tl.dot(do, tl.trans(v)) - delta[:, None]), 0.0)
        tl.atomic_add(dbias_ptr + bias_at, ds, mask=inside, sem="relaxed")
        dq = tl.dot(ds.to(k.dtype), k, dq)
    tl.store(dq_ptr + q_at, (dq * scale).to(dq_ptr.dtype.element_ty), mask=rows)


@triton.jit
def flex_backward(
    dq_ptr, dk_ptr, dv_ptr, dbias_ptr, q_ptr, k_ptr, v_ptr, do_ptr, bias_ptr, lse_ptr, delta_ptr, heads, n, m, d, scale,
    key_blocks, M1: tl.constexpr, N1: tl.constexpr, M2: tl.constexpr, N2: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Both in one launch, as FlexAttention's template divides its programs."""
    if tl.program_id(0) < key_blocks:
        attention_keys(
            dk_ptr, dv_ptr, q_ptr, k_ptr, v_ptr, do_ptr, bias_ptr, lse_ptr, delta_ptr, heads, n, m, d, scale, M1, N1,
            BLOCK_D,
        )  # fmt: skip
    else:
        attention_queries(
            dq_ptr, dbias_ptr, q_ptr, k_ptr, v_ptr, do_ptr, bias_ptr, lse_ptr, delta_ptr, heads, n, m, d, scale,
            key_blocks, M2, N2, BLOCK_D,
        )  # fmt: skip


@triton.jit
def direct_depthwise(
    y_ptr,  # [B, OH, OW, C]
    x_ptr,  # [B, H, W, C]
    w_ptr,  # [K, K, C]
    bias_ptr,  # [C], or None
    height, width, channels, out_height, out_width,
    K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of pixels and channels, tap by tap, channels innermost; no activation, no norm, no residual.

    At stride 1 the gradient of x is the same of y's gradient, with the weight turned around.
    """
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = tl.program_id(2).to(tl.int64)
    row, column = pixel // out_width, pixel % out_width
    inside = (pixel < out_height * out_width)[:, None] & (c < channels)[None, :]
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    x_ptr += b * height * width * channels
    for i in tl.static_range(K):
        for j in tl.static_range(K):
            at_h, at_w = row * STRIDE + i - PADDING, column * STRIDE + j - PADDING
            there = ((at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width))[:, None] & inside
            x = tl.load(x_ptr + (at_h * width + at_w)[:, None] * channels + c[None, :], mask=there, other=0.0)
            w = tl.load(w_ptr + (i * K + j) * channels + c, mask=c < channels, other=0.0)
            acc += x.to(tl.float32) * w.to(tl.float32)[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    y_at = (b * out_height * out_width + pixel[:, None]) * channels + c[None, :]
    tl.store(y_ptr + y_at, acc.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def direct_depthwise_dw(
    part_ptr,  # [slices, K, K, C] fp32, whose sum is the gradient
    x_ptr,  # [B, H, W, C]
    dy_ptr,  # [B, OH, OW, C]
    batch, height, width, channels, out_height, out_width,
    K: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tap of a block of channels, over a slice of all images' pixels."""
    i, j = tl.program_id(0) // K, tl.program_id(0) % K
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    pixels = batch * out_height * out_width
    for start in range(tl.program_id(2) * BLOCK_P, pixels, tl.num_programs(2) * BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        b, row, column = pixel // (out_height * out_width), pixel // out_width % out_height, pixel % out_width
        at_h, at_w = row * STRIDE + i - PADDING, column * STRIDE + j - PADDING
        inside = (pixel < pixels)[:, None] & (c < channels)[None, :]
        there = ((at_h >= 0) & (at_h < height) & (at_w >= 0) & (at_w < width))[:, None] & inside
        x_at = ((b * height + at_h) * width + at_w)[:, None] * channels + c[None, :]
        x = tl.load(x_ptr + x_at, mask=there, other=0.0)
        dy = tl.load(dy_ptr + pixel[:, None] * channels + c[None, :], mask=inside, other=0.0)
        acc += x.to(tl.float32) * dy.to(tl.float32)
    part_at = (tl.program_id(2) * K * K + tl.program_id(0)) * channels + c
    tl.store(part_ptr + part_at, tl.sum(acc, 0), mask=c < channels)
