"""Numbers that stand in kernels and in the code around them: constants of Triton, `.value` on the host."""

from __future__ import annotations

import triton.language as tl

# Kernels take exponentials as exp2, one instruction; scores and biases that they read are multiplied by this.
LOG2E = tl.constexpr(1.4426950408889634)

# A score outside of the matrix. Its exponential is zero beside any other score, however low: a mask may be the lowest
# finite number. A maximum starts at that number, so that no infinity is subtracted from another.
OUTSIDE = tl.constexpr(float("-inf"))
LOWEST = tl.constexpr(-3.4028234663852886e38)

# A sum of exponentials between this and its reciprocal leaves numbers of fp32 and bf16 on both sides for its terms, and
# for their products with values.
LARGEST_SUM = tl.constexpr(2.0**80)

# The lowest finite entry of an expanded bias, in units of log2: the last number of float16, in every dtype.
LOWEST_EXPANDED = tl.constexpr(-65504.0)

# What EXPANDED says of a kernel's bias. DENSE is as it was given; others are [H, N, M padded to 16], the padding -inf,
# in units of log2, as scores are. Of a TABLE no entry is below LOWEST_EXPANDED, so that one number is a row's lse.
DENSE, TABLE, PADDED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
