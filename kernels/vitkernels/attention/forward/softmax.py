"""The online softmax of the forward kernels.

Row sums come from the matrix unit: p is multiplied by ones while it sits in registers.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.attention.tiles import exponential, load_rows_or_last, store_lse, store_rows, sum_rows


@triton.jit
def absorb(q, k_ptr, k_row, v_ptr, v_row, bias, keys, n_keys, score_scale, top, total, acc, D: tl.constexpr,
            EXPANDED: tl.constexpr, FIRST: tl.constexpr):  # fmt: skip
    """One block of keys into the running softmax (top [R], total [R, 8], acc [R, BLOCK_D]) of one image.

    FIRST: nothing is in it yet, so nothing is rescaled.
    """
    BLOCK_D: tl.constexpr = q.shape[1]
    s = tl.dot(q, tl.trans(load_rows_or_last(k_ptr, k_row, keys, n_keys, D, BLOCK_D)), input_precision="tf32x3")
    s = s * score_scale + bias
    new_top = tl.maximum(top, tl.max(s, 1))  # finite, also where all of these keys are masked with -inf
    if not FIRST:
        shrink = exponential(top - new_top, EXPANDED)[:, None]
        acc, total = acc * shrink, total * shrink
    p = exponential(s - new_top[:, None], EXPANDED).to(q.dtype)
    v = load_rows_or_last(v_ptr, v_row, keys, n_keys, D, BLOCK_D)
    return new_top, sum_rows(p, total), tl.dot(p, v, acc, input_precision="tf32x3")


@triton.jit
def finish(out_ptr, out_row, lse_ptr, image_head, rows, n_rows, top, total, acc, D: tl.constexpr,
            EXPANDED: tl.constexpr):  # fmt: skip
    denominator = tl.max(total, 1)
    store_rows(out_ptr, out_row, acc * (1.0 / denominator)[:, None], rows, n_rows, D, acc.shape[1])
    if lse_ptr is not None:
        store_lse(lse_ptr, image_head, rows, n_rows, n_rows, top, denominator, EXPANDED)
