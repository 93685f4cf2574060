"""Numbers that stand in kernels and in the code around them: constants of Triton, `.value` on the host."""

from __future__ import annotations

import triton.language as tl

# Kernels take exponentials as exp2, one instruction; scores and biases that they read are multiplied by this.
LOG2E = tl.constexpr(1.4426950408889634)

# A score outside of the matrix, in units of log2: its exponential is zero. No infinity, since the difference of two is
# no number. float16 ends at 65504.
OUTSIDE = tl.constexpr(-1.0e30)
OUTSIDE_FP16 = tl.constexpr(-65504.0)
