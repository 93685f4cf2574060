"""Kernels whose instruction counts are known by construction, and the launches that audit them."""

from __future__ import annotations

import triton
import triton.language as tl
from vitkernels import Launch

WIDTH = 128  # elements per tensor: one per thread of four warps


@triton.jit
def exp2_chain(x_ptr, n, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at)
    for _ in range(n):
        x = tl.exp2(x)
    tl.store(x_ptr + at, x)


@triton.jit
def wide_loads(x_ptr, y_ptr, n, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    at = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.range(0, n, num_stages=STAGES):
        total += tl.load(x_ptr + i * BLOCK + at).to(tl.float32)
    tl.store(y_ptr + at, total.to(tl.bfloat16))


@triton.jit
def triangle(x_ptr, n, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at)
    for i in range(n):
        x = x * 0.5
        for _ in range(i):
            x = tl.exp2(x)
    tl.store(x_ptr + at, x)


@triton.jit
def every_third(x_ptr, n, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at)
    for i in range(n):
        x = x + 1.0
        if i % 3 == 0:
            x = tl.exp2(x)
    tl.store(x_ptr + at, x)


@triton.jit
def by_program(x_ptr, n, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at)
    for _ in range(tl.program_id(0) * n + tl.program_id(1)):
        x = tl.exp2(x)
    tl.store(x_ptr + at, x)


@triton.jit
def divided(x_ptr, n, m, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at)
    for _ in range(n // (tl.program_id(0) + m) + n % m):
        x = tl.exp2(x)
    tl.store(x_ptr + at, x)


@triton.jit
def strided_rows(x_ptr, rows, stride, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        x = tl.load(x_ptr + row.to(tl.int64) * stride + at)
        tl.store(x_ptr + row.to(tl.int64) * stride + at, tl.exp2(x))


@triton.jit
def halving(x_ptr, n, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at)
    left = n
    while left > 0:
        x = tl.exp2(x)
        left = left // 2
    tl.store(x_ptr + at, x)


@triton.jit
def from_memory(x_ptr, n_ptr, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + at)
    for _ in range(tl.load(n_ptr)):
        x = tl.exp2(x)
    tl.store(x_ptr + at, x)


@triton.jit
def product(a_ptr, b_ptr, c_ptr, K, stride_a, stride_b, stride_c, TILE: tl.constexpr):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inner = tl.arange(0, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for k in range(0, K, TILE):
        a = tl.load(a_ptr + row[:, None] * stride_a + k + inner[None, :])
        b = tl.load(b_ptr + (k + inner[:, None]) * stride_b + column[None, :])
        total = tl.dot(a, b, total)
    tl.store(c_ptr + row[:, None] * stride_c + column[None, :], total.to(tl.bfloat16))


@triton.jit
def spilling(x_ptr, y_ptr, n, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    at = tl.arange(0, WIDTH)
    rows = tl.arange(0, COUNT)
    x = tl.load(x_ptr + rows[:, None] * WIDTH + at[None, :])
    y = x
    for _ in range(n):
        y = tl.exp2(y) + x * tl.sum(y, 0)[None, :]
    tl.store(y_ptr + rows[:, None] * WIDTH + at[None, :], y)


def _exp2(kernel: object, case: str, grid: tuple[int, ...] = (3,), num_warps: int = 4, **sizes: int) -> Launch:
    args = {"x_ptr": "*fp32", "WIDTH": 32 * num_warps, **sizes}
    return Launch(
        kernel=kernel, op="exp2", case=case, pass_name="fwd", dtype="fp32", args=args, grid=grid, elements=WIDTH,
        bytes=8 * WIDTH, num_warps=num_warps,
    )  # fmt: skip


def _loads(case: str, n: int, block: int, stages: int, unaligned: bool = False) -> Launch:
    args = {"x_ptr": "*bf16", "y_ptr": "*bf16", "n": n, "BLOCK": block, "STAGES": stages}
    return Launch(
        kernel=wide_loads, op="loads", case=case, pass_name="fwd", dtype="bf16", args=args, grid=(5,),
        elements=n * block, bytes=2 * n * block, unaligned=frozenset({"x_ptr"} if unaligned else ()),
    )  # fmt: skip


def _product(case: str, m: int, n: int, k: int, tile: int, stages: int) -> Launch:
    args = {
        "a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*bf16", "K": k, "stride_a": k, "stride_b": n, "stride_c": n,
        "TILE": tile,
    }  # fmt: skip
    return Launch(
        kernel=product, op="product", case=case, pass_name="fwd", dtype="bf16", args=args,
        grid=(m // tile, n // tile), elements=m * n, bytes=2 * (m * k + k * n + m * n), matrix_flops=2 * m * n * k,
        num_stages=stages,
    )  # fmt: skip


def audit_launches(arch: int) -> list[Launch]:
    chains = [_exp2(exp2_chain, f"chain-{n}", n=n) for n in (0, 1, 2, 7, 96, 1003)]
    return [
        *chains,
        _exp2(exp2_chain, "chain-7-warps8", num_warps=8, n=7),
        *(_exp2(triangle, f"triangle-{n}", n=n) for n in (0, 1, 9, 30)),
        *(_exp2(every_third, f"third-{n}", n=n) for n in (10, 31)),
        _exp2(by_program, "program-3x4", grid=(3, 4), n=5),
        _exp2(by_program, "program-800x3", grid=(800, 3), n=5),
        _exp2(divided, "divided-97-7", grid=(11,), n=97, m=7),
        _exp2(divided, "divided-64-16", grid=(11,), n=64, m=16),
        _exp2(strided_rows, "rows-100-16", grid=(16,), rows=100, stride=2**33),
        _exp2(strided_rows, "rows-10-16", grid=(16,), rows=10, stride=2**33),
        *(_exp2(halving, f"halving-{n}", n=n) for n in (0, 1000)),
        Launch(
            kernel=from_memory, op="exp2", case="from-memory", pass_name="fwd", dtype="fp32", grid=(3,),
            args={"x_ptr": "*fp32", "n_ptr": "*i32", "WIDTH": WIDTH}, elements=WIDTH, bytes=8 * WIDTH,
        ),
        _loads("wide-1", 1, 1024, 1),
        _loads("wide-37", 37, 1024, 1),
        _loads("wide-37-staged", 37, 1024, 3),
        _loads("unaligned-37", 37, 1024, 1, unaligned=True),
        _loads("four-byte-37", 37, 256, 1),
        *(_product(f"{m}x{n}x{k}-tile{t}-stages{s}", m, n, k, t, s)
          for m, n, k, t, s in ((256, 128, 512, 64, 3), (256, 128, 64, 64, 1), (256, 256, 384, 128, 4))),
        Launch(
            kernel=spilling, op="spilling", case="tight", pass_name="fwd", dtype="fp32", grid=(3,),
            args={"x_ptr": "*fp32", "y_ptr": "*fp32", "n": 5, "COUNT": 128, "WIDTH": 32}, elements=128 * 32,
            bytes=8 * 128 * 32, num_warps=1, options={"maxnreg": 64},
        ),
    ]  # fmt: skip
