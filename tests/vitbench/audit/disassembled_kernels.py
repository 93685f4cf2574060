"""Kernels whose code has loops and branches, or calls of functions."""

from __future__ import annotations

import triton
import triton.language as tl
from vitkernels import Launch


@triton.jit
def summed(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(tl.program_id(0), n, BLOCK):
        if start % 3 == 1:
            total += tl.load(x_ptr + start + tl.arange(0, BLOCK))
        else:
            total = tl.exp(total)
    tl.store(y_ptr + tl.arange(0, BLOCK), total)


@triton.jit(noinline=True)
def _powers(x, n):
    for i in range(n):
        x = tl.exp(x) * i
    return x


@triton.jit
def calling(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    x = _powers(tl.load(x_ptr + tl.program_id(0)), n)
    tl.store(y_ptr + tl.program_id(0), _powers(x + 1, n))


def audit_launches(arch: int) -> list[Launch]:
    return [
        Launch(
            kernel=kernel, op=kernel.__name__, case=str(block), pass_name="fwd", dtype="fp32",
            args={"x_ptr": "*fp32", "y_ptr": "*fp32", "n": 1000, "BLOCK": block}, grid=(4,), elements=1024, bytes=8192,
        )
        for kernel, block in ((summed, 128), (calling, 128), (summed, 1024))
    ]  # fmt: skip
