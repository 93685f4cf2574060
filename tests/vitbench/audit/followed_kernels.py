"""Kernels whose traffic is known by construction, and the launches that audit them."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice
from vitkernels import Launch


@triton.jit
def copied(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)


@triton.jit
def read_again(x_ptr, y_ptr, times, span, BLOCK: tl.constexpr):
    """Reads x[0:span] `times` times."""
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(times):
        for start in range(0, span, BLOCK):
            total += tl.load(x_ptr + start + tl.arange(0, BLOCK))
    tl.store(y_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), total)


@triton.jit
def windows(x_ptr, y_ptr, stride, WIDTH: tl.constexpr, CHANNELS: tl.constexpr):
    """Windows of 16 rows that begin `stride` rows apart, channels innermost."""
    window = tl.arange(0, WIDTH)[:, None, None] * stride + tl.arange(0, 16)[None, :, None]
    x = tl.load(x_ptr + window * CHANNELS + tl.arange(0, CHANNELS)[None, None, :])
    rows = tl.arange(0, WIDTH)[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    tl.store(y_ptr + rows, tl.sum(x.to(tl.float32), 1).to(tl.bfloat16))


@triton.jit
def by_assembly(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.inline_asm_elementwise("ex2.approx.f32 $0, $1;", "=f,f", [tl.load(x_ptr + at)], tl.float32, True, 1)
    tl.store(y_ptr + at, x)


@triton.jit
def shared_table(x_ptr, table_ptr, y_ptr, BLOCK: tl.constexpr):
    """Every program reads a table of its own size; only memory's share of it is read once."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at) + tl.load(table_ptr + tl.arange(0, BLOCK)))


@triton.jit
def by_library(x_ptr, y_ptr, eps, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, libdevice.rsqrt(tl.load(x_ptr + at) + eps.to(tl.float32)))


@triton.jit
def added_up(x_ptr, y_ptr, apart, BLOCK: tl.constexpr):
    """Programs that lie `apart` add to elements of their own, or where that is 0 to the same ones."""
    at = tl.arange(0, BLOCK)
    tl.atomic_add(y_ptr + tl.program_id(0) * apart + at, tl.load(x_ptr + at))


def audit_launches(arch: int) -> list[Launch]:
    x, y = {"x_ptr": "*fp32"}, {"y_ptr": "*fp32"}
    half = {"x_ptr": "*bf16", "y_ptr": "*bf16", "CHANNELS": 16, "WIDTH": 8}
    cases = [
        ("whole", copied, {**x, **y, "n": 5 * 1024, "BLOCK": 1024}, 5),
        ("masked", copied, {**x, **y, "n": 4 * 1024 + 100, "BLOCK": 1024}, 5),
        ("small-again", read_again, {**x, **y, "times": 9, "span": 4096, "BLOCK": 1024}, 3),
        ("large-again", read_again, {**x, **y, "times": 9, "span": 1 << 20, "BLOCK": 8192}, 1),
        ("apart", windows, {**half, "stride": 16}, 1),
        ("overlapping", windows, {**half, "stride": 14}, 1),
        ("assembly", by_assembly, {**x, **y, "BLOCK": 1024}, 4),
        ("table", shared_table, {**x, **y, "table_ptr": "*fp32", "BLOCK": 1024}, 64),
        ("library", by_library, {**x, **y, "eps": 1e-6, "BLOCK": 1024}, 4),
        ("meeting", added_up, {**x, **y, "apart": 0, "BLOCK": 32}, 50_000),
        ("apart-adding", added_up, {**x, **y, "apart": 32, "BLOCK": 32}, 50_000),
        ("shared", shared_table, {**x, **y, "table_ptr": "*fp32", "BLOCK": 1024}, 256),
    ]
    return [
        Launch(kernel=kernel, op="followed", case=case, pass_name="fwd", dtype="fp32", args=args, grid=(programs,),
               elements=1024 * programs, bytes=8 * 1024 * programs)
        for case, kernel, args, programs in cases
    ]  # fmt: skip
