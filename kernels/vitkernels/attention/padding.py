"""A dense bias made what kernels read fastest: rows of a multiple of 16 keys, in units of log2, in the dtype of q."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitkernels.runtime.call import Call, cdiv
from vitkernels.runtime.constants import LOG2E, OUTSIDE


@triton.jit
def _pad_kernel(
    out_ptr,  # [H, N, P] with P = M padded to 16
    bias_ptr,  # [H, N, M]
    bias_stride_h,
    bias_stride_n,
    N,
    M,
    P,
    largest,  # number of out's dtype
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(P, BLOCK_M), tl.cdiv(N, BLOCK_N)
    cols = pid % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = (pid // tiles_m % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    head = (pid // (tiles_m * tiles_n)).to(tl.int64)
    at = head * bias_stride_h + rows[:, None] * bias_stride_n + cols[None, :]
    bias = tl.load(bias_ptr + at, mask=(rows[:, None] < N) & (cols[None, :] < M), other=OUTSIDE).to(tl.float32)
    # A mask that is finite stays so: a row of nothing else is a number.
    scaled = tl.minimum(tl.maximum(bias * LOG2E, -largest), largest)
    bias = tl.where(tl.abs(bias) < float("inf"), scaled, bias)
    mask = (rows[:, None] < N) & (cols[None, :] < P)
    tl.store(out_ptr + (head * N + rows)[:, None] * P + cols[None, :], bias.to(out_ptr.dtype.element_ty), mask=mask)


def padded_bias(bias: Tensor, dtype: torch.dtype, pass_name: str) -> tuple[Tensor, Call]:
    """An empty [H, N, M padded to 16] for queries of that dtype, and the launch that fills it.

    Its dtype is that of the queries, but fp32 where they are fp16: that ends where masks begin.
    """
    H, N, M = bias.shape
    out = bias.new_empty((H, N, cdiv(M, 16) * 16), dtype=torch.float32 if dtype == torch.float16 else dtype)
    block_m = min(256, triton.next_power_of_2(out.shape[2]))
    block_n = 2048 // block_m
    args = {
        "out_ptr": out, "bias_ptr": bias, "bias_stride_h": bias.stride(0), "bias_stride_n": bias.stride(1), "N": N,
        "M": M, "P": out.shape[2], "largest": torch.finfo(out.dtype).max, "BLOCK_N": block_n, "BLOCK_M": block_m,
    }  # fmt: skip
    programs = cdiv(out.shape[2], block_m) * cdiv(N, block_n) * H
    return out, Call(kernel=_pad_kernel, args=args, grid=programs, pass_name=pass_name)
