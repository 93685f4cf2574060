"""A launch as data: run it, or describe it to the audit; and the sum of partial results."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitkernels.runtime.device import on_device_of
from vitkernels.runtime.launch import Launch

_TRITON_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}
SHORT_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One kernel launch as data: `run_all` executes it, `audit` describes it to the audit without a GPU.

    grid is the number of programs along x, or along x and y. scores counts the useful scores (query-key pairs) that
    the launch computes, each with one exp2; products the matrix products over them. options are further compile
    options, e.g. {"maxnreg": 128}.
    """

    kernel: Any
    args: Mapping[str, Any]
    grid: int | tuple[int, int]
    pass_name: str
    products: int = 0
    scores: int = 0
    num_warps: int = 4
    num_stages: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def extents(self) -> tuple[int, ...]:
        """The grid as Triton takes it."""
        return self.grid if isinstance(self.grid, tuple) else (self.grid,)

    def audit(self, op: str, case: str, head_dim: int, elements: int) -> Launch:
        """The launch with its tensors (which may live on the meta device) reduced to Triton's pointer types."""
        tensors = {name: value for name, value in self.args.items() if isinstance(value, Tensor)}
        args = {**self.args, **{name: _TRITON_TYPES[value.dtype] for name, value in tensors.items()}}
        data = tensors["q_ptr"] if "q_ptr" in tensors else next(iter(tensors.values()))
        return Launch(
            kernel=self.kernel, op=op, case=case, pass_name=self.pass_name, dtype=SHORT_TYPES[data.dtype], args=args,
            grid=self.extents, elements=elements, bytes=sum(x.numel() * x.element_size() for x in tensors.values()),
            matrix_flops=2 * self.products * self.scores * head_dim, special=self.scores,
            num_warps=self.num_warps, num_stages=self.num_stages, options=self.options,
        )  # fmt: skip


def run_all(calls: Sequence[Call]) -> None:
    """Launches in order on the current stream of the tensors' GPU; a call without programs is skipped."""
    with on_device_of(next(value for value in calls[0].args.values() if isinstance(value, Tensor))):
        for call in calls:
            if 0 not in call.extents:
                call.kernel[call.extents](
                    **call.args, num_warps=call.num_warps, num_stages=call.num_stages, **call.options
                )


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


_BLOCK, _PROGRAMS = 1024, 512


@triton.jit
def sum_parts_kernel(
    out_ptr,  # [size]: rows of `width` numbers
    parts_ptr,  # [parts, size / width, PADDED]
    size,  # numbers of a part
    parts,
    width,
    PADDED: tl.constexpr,  # numbers of a part's rows, 0 for `width`
    AHEAD: tl.constexpr,  # loads on their way at a time
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of partial results in a fixed order, so that it is the same bit for bit from run to run."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    rows = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    parts_ptrs = parts_ptr + rows.to(tl.int64)[:, None] * size + offs[None, :]
    for start in tl.range(0, parts, ROWS, loop_unroll_factor=AHEAD):
        total += tl.load(parts_ptrs, mask=(start + rows < parts)[:, None] & mask[None, :], other=0.0)
        parts_ptrs += tl.cast(size, tl.int64) * ROWS
    if PADDED > 0:
        mask = mask & (offs % PADDED < width)
        offs = offs // PADDED * width + offs % PADDED
    tl.store(out_ptr + offs, tl.sum(total, 0).to(out_ptr.dtype.element_ty), mask=mask)


def sum_parts_call(out: Tensor, parts: Tensor, pass_name: str) -> Call:
    """Launch of `sum_parts_kernel`: out (dense) is the sum over the first dimension of parts.

    Rows of parts may be longer than those of out: what is beyond is left out.
    """
    size, width = parts[0].numel(), out.shape[-1]
    # Of few numbers a program takes several parts at a time: one after another each would wait for memory.
    block = min(_BLOCK, max(32, triton.next_power_of_2(cdiv(size, _PROGRAMS))))
    rows = _BLOCK // block
    # AHEAD: what many parts wait for is memory; more than 8 loads on their way spill with Triton 3.8.
    args = {
        "out_ptr": out, "parts_ptr": parts, "size": size, "parts": parts.shape[0], "width": width,
        "PADDED": 0 if parts.shape[-1] == width else parts.shape[-1], "ROWS": rows, "BLOCK": block,
        "AHEAD": 8 if parts.shape[0] >= 32 * rows else 4 if parts.shape[0] >= 32 else 1,
    }  # fmt: skip
    return Call(kernel=sum_parts_kernel, args=args, grid=cdiv(size, block), pass_name=pass_name)
