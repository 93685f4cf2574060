"""Offsets within an image that 32 bits do not hold: views whose channels, rows or columns lie far apart."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def widened(stride_c, stride_h, stride_w, WIDE: tl.constexpr):
    """Strides as 64-bit numbers where WIDE, so that what is multiplied by them is too."""
    return (
        tl.cast(stride_c, tl.int64) if WIDE else stride_c,
        tl.cast(stride_h, tl.int64) if WIDE else stride_h,
        tl.cast(stride_w, tl.int64) if WIDE else stride_w,
    )


def needs_64_bits(*tensors: Tensor) -> bool:
    """Whether an element of an image of one of these [B, C, H, W] lies 2^31 elements or more from its first."""
    for x in tensors:
        _, c, h, w = x.shape
        _, stride_c, stride_h, stride_w = x.stride()
        if (c - 1) * stride_c + (h - 1) * stride_h + (w - 1) * stride_w >= 2**31:
            return True
    return False
