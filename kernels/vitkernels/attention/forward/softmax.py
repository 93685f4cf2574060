"""The softmax of the forward kernels, over blocks of keys.

Where the dtype of p reaches as far as fp32, exponentials are those of the scores as they are: no maximum is looked for
and nothing rescaled, and each row's sum then says whether that was right. It is for every row whose log-sum-exp lies
within 80 log 2 = 55 of zero; else a program takes its images once more, by the online softmax.

Row sums come from the matrix unit: p is multiplied by ones while it sits in registers.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.attention.tiles import exponential, store_lse, store_rows, sum_rows
from vitkernels.runtime.constants import LARGEST_SUM, LOWEST


@triton.jit
def nothing_yet(R: tl.constexpr, BLOCK_D: tl.constexpr):
    """The running softmax of a tile before its first keys: top [R], total [R, 8], acc [R, BLOCK_D]."""
    return tl.full([R], LOWEST, tl.float32), tl.zeros([R, 8], tl.float32), tl.zeros([R, BLOCK_D], tl.float32)


@triton.jit
def absorb(q, k, v, bias, score_scale, top, total, acc, EXPANDED: tl.constexpr):
    """One block of keys, k and v [K, BLOCK_D] and bias [R, K], into the running softmax of q [R, BLOCK_D]."""
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * score_scale + bias
    new_top = tl.maximum(top, tl.max(s, 1))  # finite, also where all of these keys are masked with -inf
    shrink = exponential(top - new_top, EXPANDED)[:, None]
    p = exponential(s - new_top[:, None], EXPANDED).to(q.dtype)
    return new_top, sum_rows(p, total * shrink), tl.dot(p, v, acc * shrink, input_precision="tf32x3")


@triton.jit
def weigh_all(q, k, v, bias, score_scale, EXPANDED: tl.constexpr):
    """`absorb` for the only block of keys."""
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * score_scale + bias
    top = tl.maximum(tl.max(s, 1), LOWEST)
    p = exponential(s - top[:, None], EXPANDED).to(q.dtype)
    total = sum_rows(p, tl.zeros([q.shape[0], 8], tl.float32))
    return top, total, tl.dot(p, v, input_precision="tf32x3")


@triton.jit
def absorb_as_is(q, k, v, bias, score_scale, total, acc):
    """`absorb` without a maximum, of a bias and a scale in units of log2."""
    s = tl.dot(q, tl.trans(k), input_precision="tf32x3") * score_scale + bias
    p = tl.math.exp2(s).to(q.dtype)
    return sum_rows(p, total), tl.dot(p, v, acc, input_precision="tf32x3")


@triton.jit
def all_in_range(totals, AS_IS: tl.constexpr):
    """Whether the sums of all rows, a tuple of [R, 8], say that no maximum was needed. One answer for a program."""
    if not AS_IS:
        return True
    fits = tl.full(totals[0].shape, 1, tl.int32)
    for i in tl.static_range(len(totals)):
        fits = fits & ((totals[i] > 1.0 / LARGEST_SUM) & (totals[i] < LARGEST_SUM)).to(tl.int32)
    return tl.min(tl.min(fits, 1), 0) == 1


@triton.jit
def finish(out_ptr, out_row, lse_ptr, image_head, rows, n_rows, top, total, acc, D: tl.constexpr,
            EXPANDED: tl.constexpr):  # fmt: skip
    denominator = tl.max(total, 1)
    store_rows(out_ptr, out_row, acc * (1.0 / denominator)[:, None], rows, n_rows, D, acc.shape[1])
    if lse_ptr is not None:
        store_lse(lse_ptr, image_head, rows, n_rows, n_rows, top, denominator, EXPANDED)
