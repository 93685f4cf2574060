"""A kernel of your own under the audit: softmax over rows, registered so that `vitbench audit` can guard it.

    vitbench audit --kernels examples/kernels/softmax.py --arch sm_90
    vitbench audit --kernels examples/kernels/softmax.py --arch sm_90 --show imagenet

Three things make a kernel auditable: it is defined at the top level of a module; the function that chooses its block
sizes can be called without data (`plan` below, which the launcher calls too); and the module has `audit_launches`,
which describes each launch that should be guarded. Nothing here imports vitbench.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from vitkernels import Launch


@triton.jit
def _softmax_fwd_kernel(
    y_ptr,  # [ROWS, COLUMNS], contiguous rows
    x_ptr,  # [ROWS, COLUMNS], rows stride_x apart
    stride_x,
    columns,
    BLOCK: tl.constexpr,  # a power of two that holds a whole row
    EVEN: tl.constexpr,  # columns == BLOCK: no mask is needed and loads are as wide as they can be
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    if EVEN:
        x = tl.load(x_ptr + row * stride_x + at).to(tl.float32)
    else:
        x = tl.load(x_ptr + row * stride_x + at, mask=at < columns, other=-float("inf")).to(tl.float32)
    # exp(x) = 2 ** (x log2 e): the hardware has only exp2.
    p = tl.exp2((x - tl.max(x, 0)) * 1.4426950408889634)
    y = (p / tl.sum(p, 0)).to(y_ptr.dtype.element_ty)
    if EVEN:
        tl.store(y_ptr + row * columns + at, y)
    else:
        tl.store(y_ptr + row * columns + at, y, mask=at < columns)


@dataclass(frozen=True)
class Plan:
    """How the kernel is launched for a row length."""

    block: int
    num_warps: int
    even: bool


def plan(columns: int) -> Plan:
    """One program per row; a warp for every 512 elements, so that a thread holds about 16."""
    block = triton.next_power_of_2(columns)
    return Plan(block, max(1, min(16, block // 512)), columns == block)


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension.

    Args:
        x: [ROWS, COLUMNS], fp16, bf16 or fp32, last dimension contiguous.

    Raises: ValueError when x is not a matrix with contiguous rows.
    """
    if x.ndim != 2 or x.stride(1) != 1:
        raise ValueError(
            f"softmax needs a matrix with contiguous rows, got shape {tuple(x.shape)}, strides {x.stride()}"
        )
    rows, columns = x.shape
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    chosen = plan(columns)
    _softmax_fwd_kernel[(rows,)](
        y, x, x.stride(0), columns, BLOCK=chosen.block, EVEN=chosen.even, num_warps=chosen.num_warps
    )
    return y


CASES = {"imagenet": (4096, 1000), "attention_1024": (65536, 1024)}  # name: (rows, columns)


def audit_launches(arch: int) -> list[Launch]:
    """Every case in bf16; the plan is the same on every architecture."""
    found = []
    for name, (rows, columns) in CASES.items():
        chosen = plan(columns)
        found.append(
            Launch(
                kernel=_softmax_fwd_kernel,
                op="softmax",
                case=name,
                pass_name="fwd",
                dtype="bf16",
                args={
                    "y_ptr": "*bf16",
                    "x_ptr": "*bf16",
                    "stride_x": columns,
                    "columns": columns,
                    "BLOCK": chosen.block,
                    "EVEN": chosen.even,
                },
                grid=(rows,),
                num_warps=chosen.num_warps,
                elements=rows * columns,
                bytes=2 * 2 * rows * columns,  # read once, written once
                special=rows * columns,  # one exp2 each
            )
        )
    return found
