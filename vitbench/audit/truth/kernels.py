"""Kernels of published times that are no examples: few would write them so, or an example does nearly the same."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from vitkernels import Launch

_LOG2_E = 1.4426950408889634


@triton.jit
def attention_of_2022(
    o_ptr, q_ptr, k_ptr, v_ptr,  # [B, H, N, D], laid out as (B, N, H, D)
    lse_ptr, scratch_ptr,  # [B, H, N]
    heads, n, stride_b, stride_h, stride_m, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Streaming attention with a running log-sum-exp; what rescales the output goes through memory, twice a program
    and once a block of keys, because compilers of the time gave a reduced vector the wrong layout otherwise."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    image_head = tl.program_id(1)
    base = (image_head // heads) * stride_b + (image_head % heads) * stride_h
    offs_n, offs_d = tl.arange(0, BLOCK_N), tl.arange(0, D)
    scratch = scratch_ptr + image_head * n + offs_m
    rows = offs_m[:, None] < n
    at = base + offs_m[:, None] * stride_m + offs_d[None, :]
    q = tl.load(q_ptr + at, mask=rows, other=0.0)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    lse = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    for start in range(0, n, BLOCK_N):
        here = start + offs_n
        place = base + here[:, None] * stride_m + offs_d[None, :]
        k = tl.load(k_ptr + place, mask=here[:, None] < n, other=0.0)
        scores = tl.dot(q, tl.trans(k))
        scores += tl.where(here[None, :] < n, 0.0, float("-inf"))
        higher = tl.maximum(tl.max(scores, 1) * scale, lse)
        p = tl.exp(scores * scale - higher[:, None])
        total = tl.sum(p, 1)
        tl.store(scratch, tl.exp(top - higher), mask=offs_m < n)
        tl.debug_barrier()
        acc = acc * tl.load(scratch, mask=offs_m < n, other=0.0)[:, None]
        v = tl.load(v_ptr + place, mask=here[:, None] < n, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc)
        top = higher
        lse = higher + tl.log(tl.exp(lse - higher) + total)
    tl.store(scratch, tl.exp(top - lse), mask=offs_m < n)
    tl.debug_barrier()
    acc = acc * tl.load(scratch, mask=offs_m < n, other=0.0)[:, None]
    tl.store(lse_ptr + image_head * n + offs_m, lse, mask=offs_m < n)
    tl.store(o_ptr + at, acc.to(o_ptr.dtype.element_ty), mask=rows)


def attention_of_2022_launch(b: int, h: int, n: int, d: int) -> Launch:
    """Its launch on an A100: blocks of 128, no pipeline, 4 warps up to 64 channels a head and 8 beyond."""
    scores = b * h * n * n
    return Launch(
        kernel=attention_of_2022, op="attention_of_2022", case=f"b{b}-h{h}-n{n}-d{d}", pass_name="fwd", dtype="fp16",
        args={
            "o_ptr": "*fp16", "q_ptr": "*fp16", "k_ptr": "*fp16", "v_ptr": "*fp16", "lse_ptr": "*fp32",
            "scratch_ptr": "*fp32", "heads": h, "n": n, "stride_b": n * h * d, "stride_h": d, "stride_m": h * d,
            "scale": d**-0.5, "BLOCK_M": 128, "BLOCK_N": 128, "D": d,
        },
        grid=(triton.cdiv(n, 128), b * h), num_warps=4 if d <= 64 else 8, num_stages=1, elements=scores,
        bytes=b * h * n * (8 * d + 4), matrix_flops=4 * scores * d, special=scores,
    )  # fmt: skip


@triton.jit
def masked_matmul(
    c_ptr, a_ptr, b_ptr,  # [M, N], [M, K], [K, N], contiguous
    m, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """C = A B in tiles, numbered as in examples/kernels/matmul.py, with every edge masked in the loop."""
    pid = tl.program_id(0)
    rows, columns = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    first = pid // (GROUP * columns) * GROUP
    height = min(rows - first, GROUP)
    offs_m = (first + pid % (GROUP * columns) % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid % (GROUP * columns) // height * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    a_at = a_ptr + offs_m[:, None] * k + offs_k[None, :]
    b_at = b_ptr + offs_k[:, None] * n + offs_n[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        inner = offs_k < k - start
        a = tl.load(a_at, mask=(offs_m < m)[:, None] & inner[None, :], other=0.0)
        b = tl.load(b_at, mask=inner[:, None] & (offs_n < n)[None, :], other=0.0)
        acc = tl.dot(a, b, acc)
        a_at += BLOCK_K
        b_at += BLOCK_K * n
    c_at = c_ptr + offs_m[:, None] * n + offs_n[None, :]
    tl.store(c_at, acc.to(c_ptr.dtype.element_ty), mask=(offs_m < m)[:, None] & (offs_n < n)[None, :])


def masked_matmul_launch(n: int, tiles: tuple[int, int, int, int, int], group: int) -> Launch:
    """Its launch on square fp16 matrices; `tiles` are block sizes of M, N and K, stages, warps."""
    block_m, block_n, block_k, stages, warps = tiles
    return Launch(
        kernel=masked_matmul, op="masked_matmul", case=f"{n}-{block_m}x{block_n}x{block_k}-s{stages}-g{group}",
        pass_name="fwd", dtype="fp16",
        args={
            "c_ptr": "*fp16", "a_ptr": "*fp16", "b_ptr": "*fp16", "m": n, "n": n, "k": n, "BLOCK_M": block_m,
            "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP": group,
        },
        grid=(triton.cdiv(n, block_m) * triton.cdiv(n, block_n),), num_warps=warps, num_stages=stages, elements=n * n,
        bytes=6 * n * n, matrix_flops=2 * n**3,
    )  # fmt: skip
