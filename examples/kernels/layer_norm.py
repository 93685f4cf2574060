"""The shortest way to have a kernel audited: run its launcher on tensors without data.

    vitbench audit --kernels examples/kernels/layer_norm.py --arch sm_90

`launches_of` runs `layer_norm` on the meta device and writes down what it would have launched: grid, strides, alignment
and dtypes of the examples, what @triton.heuristics computes, and each configuration of @triton.autotune as a launch of
its own, so that the audit says which of them is fastest.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from vitkernels import Launch, launches_of


@triton.autotune([triton.Config({}, num_warps=warps) for warps in (1, 2, 4, 8)], key=["columns"])
@triton.heuristics({"BLOCK": lambda args: triton.next_power_of_2(args["columns"])})
@triton.jit
def _layer_norm_kernel(
    y_ptr, x_ptr,  # [ROWS, COLUMNS], rows a stride apart
    weight_ptr, bias_ptr,  # [COLUMNS]
    y_stride, x_stride, columns, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    mask = at < columns
    x = tl.load(x_ptr + row * x_stride + at, mask=mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, x - tl.sum(x, 0) / columns, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / columns + eps)
    weight, bias = tl.load(weight_ptr + at, mask=mask), tl.load(bias_ptr + at, mask=mask)
    y = centred * scale * weight.to(tl.float32) + bias.to(tl.float32)
    tl.store(y_ptr + row * y_stride + at, y.to(y_ptr.dtype.element_ty), mask=mask)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension.

    Args:
        x: [ROWS, COLUMNS], last dimension contiguous; weight, bias: [COLUMNS]; fp16, bf16 or fp32.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _layer_norm_kernel[(x.shape[0],)](y, x, weight, bias, y.stride(0), x.stride(0), x.shape[1], eps)
    return y


def audit_launches(arch: int) -> list[Launch]:
    """ViT-B at 224 px, batch 64."""
    x, weight = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((64 * 197, 768), (768,)))
    return launches_of(layer_norm, x, weight, weight, case="vit_b-224")
