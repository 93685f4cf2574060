"""Kernels as they are met outside: under other decorators, with tensor descriptors, with loops bounded by memory."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor
from vitkernels import Descriptor, Launch, launches_of

STARTS = [0, 100, 100, 2148, 3000]


@triton.heuristics({"BLOCK": lambda args: triton.next_power_of_2(args["n"]), "SCALE": lambda args: args["y_ptr"].dtype})
@triton.jit
def by_heuristics(y_ptr, x_ptr, n, BLOCK: tl.constexpr, SCALE: tl.constexpr):
    at = tl.arange(0, BLOCK)
    row = tl.program_id(0) * n
    tl.store(y_ptr + row + at, tl.exp2(tl.load(x_ptr + row + at, mask=at < n) * SCALE), mask=at < n)


@triton.autotune([triton.Config({"BLOCK": 256}, num_warps=2, num_stages=1)], key=["n"])
@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def tuned(y_ptr, x_ptr, n, BLOCK: tl.constexpr, EVEN: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        tl.store(y_ptr + at, tl.load(x_ptr + at))
    else:
        tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n)


def _enough(configs, named_args, **_):
    return [config for config in configs if config.kwargs["BLOCK"] <= named_args["n"]]


@triton.autotune(
    [triton.Config({"BLOCK": block}, num_warps=block // 128) for block in (256, 512, 4096)],
    key=["n"],
    prune_configs_by={"early_config_prune": _enough},
)
@triton.jit
def tuned_over_three(y_ptr, x_ptr, n, step, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at * step, mask=at < n), mask=at < n)


@triton.jit
def tiles(dst, src, ROWS: tl.constexpr):
    at = [tl.program_id(0) * ROWS, 0]
    dst.store(at, src.load(at) * 2)


@triton.jit
def ragged(y_ptr, x_ptr, starts_ptr, BLOCK: tl.constexpr):
    segment = tl.program_id(0)
    last = tl.load(starts_ptr + segment + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(tl.load(starts_ptr + segment), last, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(x_ptr + at, mask=at < last, other=0.0)
    tl.store(y_ptr + segment, tl.sum(total, 0))


def copied(x):
    """A launcher of which nothing says that it is audited."""
    y = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
    n = x.shape[0]
    tuned_over_three[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](y, x, n, x.stride(0))
    return y


def doubled(x):
    y = torch.empty_like(x)
    described = [TensorDescriptor.from_tensor(tensor, [64, 32]) for tensor in (y, x)]
    tiles[(triton.cdiv(x.shape[0], 64),)](*described, 64, num_warps=8)
    tiles[(triton.cdiv(x.shape[0], 64),)](*described, ROWS=64, maxnreg=64)
    return y


def audit_launches(arch: int) -> list[Launch]:
    x = {"y_ptr": "*fp32", "x_ptr": "*fp32"}
    at = {"pass_name": "fwd", "dtype": "fp32", "grid": (12,), "elements": 12 * 512, "bytes": 8 * 12 * 512}
    segments = {"pass_name": "fwd", "dtype": "fp32", "grid": (4,), "elements": 3000, "bytes": 4 * 3000}
    args = {**x, "starts_ptr": "*i32", "BLOCK": 128}
    part = Descriptor("fp32", (700, 20), (20, 1), (64, 32))
    # A tile of 64 rows of 20 floats, the last one of 60 rows: what lies outside of the tensor moves nothing.
    narrow = {"pass_name": "fwd", "dtype": "fp32", "grid": (11,), "elements": 14000, "bytes": 8 * 14000}
    whole = {"pass_name": "fwd", "dtype": "fp32", "grid": (150,), "elements": 150 * 2048, "bytes": 8 * 150 * 2048}
    return [
        Launch(kernel=by_heuristics, op="outside", case="heuristics", args={**x, "n": 512, "SCALE": 0.5}, **at),
        Launch(kernel=tuned, op="outside", case="tuned", args={**x, "n": 12 * 256}, **at),
        Launch(kernel=ragged, op="outside", case="ragged-known", args=args, values={"starts_ptr": STARTS}, **segments),
        Launch(kernel=ragged, op="outside", case="ragged-unknown", args=args, **segments),
        Launch(kernel=tiles, op="outside", case="tiles-narrow", args={"dst": part, "src": part, "ROWS": 64}, **narrow),
        Launch(
            kernel=tiles, op="outside", case="tiles-whole", args={"ROWS": 64} | dict.fromkeys(
                ("dst", "src"), "tensordesc<fp32[64, 32]>"
            ), **whole,
        ),
        *launches_of(copied, torch.empty(2, 3000, device="meta")[:, 1:].t()[:, 0], case="odd"),
        *launches_of(doubled, torch.empty(640, 64, device="meta", dtype=torch.bfloat16), case="descriptors"),
    ]  # fmt: skip
