"""How a kernel says what it launches, so that an audit can compile and cost it with no GPU.

A module that holds kernels (ours or a user's) exposes one function:

    from vitkernels import Launch

    def audit_launches(arch: int) -> list[Launch]:      # arch: 80, 90, 100 ... as in sm_90
        return [Launch(kernel=_softmax_fwd_kernel, op="softmax", case="rows4096-cols1000", pass_name="fwd",
                       dtype="bf16",
                       args={"x_ptr": "*bf16", "y_ptr": "*bf16", "n_cols": 1000, "stride": 1000,
                             "scale": 0.125, "bias_ptr": None, "BLOCK": 1024},
                       grid=(4096,), num_warps=4, num_stages=3,
                       elements=4096 * 1000, bytes=2 * 2 * 4096 * 1000, special=4096 * 1000)]

One `Launch` is one kernel launch, written exactly as the launcher makes it on that architecture: a pass that
launches three kernels gives three (pass names such as "bwd_dq", "bwd_dbias", "bwd_reduce"). `audit_launches`
must call the same function that picks block sizes and warps at run time, or the audit reads another kernel.

Trip counts are not given: the audit runs the control flow of the machine code with these argument values, so
integers must be the real sizes and strides, and `grid` the real grid. Integers are specialised as Triton does at a
launch: 1 becomes a constant and multiples of 16 are declared so, except parameters in `do_not_specialize`.
This file needs neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Descriptor:
    """A tensor descriptor made by the host, as an argument of a `Launch`: what a type string does not tell.

    Attributes:
        dtype: of an element, e.g. "bf16".
        shape: of the tensor; loads beyond it move nothing.
        strides: in elements, the last one 1.
        block: the tile that one load or store moves.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block: tuple[int, ...]

    @property
    def type(self) -> str:
        """As Triton writes it: tensordesc<bf16[64, 128]>."""
        return f"tensordesc<{self.dtype}{list(self.block)}>"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One launch of one `@triton.jit` kernel at one case; plain data.

    Attributes:
        kernel: the `@triton.jit` function, defined at the top level of an importable module.
        op: the operation, e.g. "bias_attention"; column `kernel` of the audit.
        case: the shape's name, e.g. "coatnet_0-s3-224-b64".
        pass_name: "fwd", "bwd_dq", ...; column `pass`.
        dtype: "bf16", "fp16" or "fp32", for the reader.
        args: every parameter by name. A pointer is its Triton type ("*bf16", "*fp32", "*i32"), a tensor descriptor
            its type string ("tensordesc<bf16[64, 128]>") or a `Descriptor`, a number or bool its value, an absent
            optional pointer None; constexprs their values (Triton dtypes included). What @triton.heuristics computes,
            or the only configuration of @triton.autotune gives, may be left out.
        grid: number of programs along x, y, z.
        elements: useful (unpadded) scores or outputs the launch computes: the denominator of issue slots per element.
        bytes: bytes of device memory it cannot avoid reading or writing.
        matrix_flops: floating-point operations (2 per multiply-add) of matrix products it cannot avoid.
        special: exp2, tanh, reciprocal... results it cannot avoid.
        fma: fp32 multiply-adds outside matrix products that it cannot avoid.
        num_warps, num_stages: as launched.
        options: further compile options, e.g. {"maxnreg": 128}.
        unaligned: pointers not known to be 16-byte aligned.
        values: what lies behind pointers to integers, from their first element on, where it bounds loops or is added
            to addresses (starts of ragged batches): {"starts_ptr": [0, 7, 12]}. Without it such a launch is no row that
            is "ok"; other loads give the audit zeros.
        moved_bytes: bytes of device memory this design moves (a tensor read twice counts twice unless the second
            read is served by the L2 cache); default `bytes`.
    """

    kernel: Any
    op: str
    case: str
    pass_name: str
    dtype: str
    args: Mapping[str, Any]
    grid: tuple[int, ...]
    elements: int
    bytes: int
    matrix_flops: int = 0
    special: int = 0
    fma: int = 0
    num_warps: int = 4
    num_stages: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    unaligned: frozenset[str] = frozenset()
    values: Mapping[str, Sequence[int]] = field(default_factory=dict)
    moved_bytes: int | None = None

    @property
    def id(self) -> str:
        """The key of this launch in tables and baselines: op/case/pass/dtype."""
        return f"{self.op}/{self.case}/{self.pass_name}/{self.dtype}"

    @property
    def programs(self) -> int:
        """Number of programs (thread blocks) launched."""
        count = 1
        for extent in self.grid:
            count *= extent
        return count
