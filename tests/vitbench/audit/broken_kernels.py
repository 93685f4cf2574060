"""Kernels that do not compile, crash the compiling process, or are described wrongly."""

from __future__ import annotations

import os

import triton
import triton.language as tl
from vitkernels import Launch


@triton.jit
def copy(x_ptr, y_ptr, n, scale, flag, bias_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n) * scale
    if bias_ptr is not None:
        x += tl.load(bias_ptr + at, mask=at < n)
    if flag:
        x = -x
    tl.store(y_ptr + at, x, mask=at < n)


@triton.jit
def not_a_power_of_two(x_ptr, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), 0.0)


class Killer:
    """Ends the process that unpickles it: a stand-in for a compiler that crashes."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (7,)


def _launch(kernel: object, case: str, **args: object) -> Launch:
    return Launch(
        kernel=kernel, op="broken", case=case, pass_name="fwd", dtype="fp32", args=args, grid=(4,), elements=1024,
        bytes=8192,
    )  # fmt: skip


GOOD = {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": 1000, "scale": 0.5, "flag": True, "bias_ptr": None, "BLOCK": 1024}


def audit_launches(arch: int) -> list[Launch]:
    return [
        _launch(copy, "good", **GOOD),
        _launch(copy, "one", **{**GOOD, "n": 1}),
        _launch(copy, "huge", **{**GOOD, "n": 2**40}),
        _launch(copy, "with bias", **{**GOOD, "bias_ptr": "*fp32"}),
        _launch(not_a_power_of_two, "odd block", x_ptr="*fp32", BLOCK=48),
        _launch(copy, "crash", **{**GOOD, "scale": Killer()}),
        _launch(copy, "after", **GOOD),
        _launch(copy, "lacking", x_ptr="*fp32"),
        _launch(copy, "extra", **GOOD, m=3),
    ]
