"""What the attention kernels share: a launch as data, tile loads, argument checks, the split of work."""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitkernels._launch import Launch

Shape = tuple[int, int, int, int]
LOG2E = 1.4426950408889634
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton saw it when it was imported, just now
MULTIPROCESSORS = 132  # of an H100 or H200
PROGRAMS_WANTED = 384  # about three programs for each of them: the last wave stays short
_TRITON_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32"}
_SHORT_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One kernel launch as data: `run_all` executes it, `audit` describes it to the audit without a GPU.

    scores counts the useful scores (query-key pairs) that the launch computes, each with one exp2; products the
    matrix products over them.
    """

    kernel: Any
    args: Mapping[str, Any]
    grid: int
    pass_name: str
    products: int = 0
    scores: int = 0
    num_warps: int = 4
    num_stages: int = 2

    def audit(self, op: str, case: str, head_dim: int, elements: int) -> Launch:
        """The launch with its tensors (which may live on the meta device) reduced to Triton's pointer types."""
        tensors = {name: value for name, value in self.args.items() if isinstance(value, Tensor)}
        args = {**self.args, **{name: _TRITON_TYPES[value.dtype] for name, value in tensors.items()}}
        data = tensors["q_ptr"] if "q_ptr" in tensors else next(iter(tensors.values()))
        return Launch(
            kernel=self.kernel, op=op, case=case, pass_name=self.pass_name, dtype=_SHORT_TYPES[data.dtype], args=args,
            grid=(self.grid,), elements=elements, bytes=sum(x.numel() * x.element_size() for x in tensors.values()),
            matrix_flops=2 * self.products * self.scores * head_dim, special=self.scores,
            num_warps=self.num_warps, num_stages=self.num_stages,
        )  # fmt: skip


def run_all(calls: Sequence[Call]) -> None:
    """Launches in order on the current stream of the tensors' GPU; a call without programs is skipped."""
    with on_device_of(next(value for value in calls[0].args.values() if isinstance(value, Tensor))):
        for call in calls:
            if call.grid:
                call.kernel[(call.grid,)](**call.args, num_warps=call.num_warps, num_stages=call.num_stages)


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one, on which Triton launches; does nothing where it is already."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def arch_of(tensor: Tensor) -> int:
    """Compute capability of the tensor's GPU, 90 for sm_90; also 90 where the interpreter runs the kernels."""
    return _arch_of_gpu(tensor.device) if tensor.is_cuda else 90


@torch.compiler.assume_constant_result
def _arch_of_gpu(device: torch.device) -> int:
    """A constant of the graph for torch.compile, which would otherwise put the question into it."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def reads_operands_from_registers(arch: int) -> bool:
    """Whether the matrix unit takes both operands from registers (sm_80, sm_86, sm_120), so that fewer tiles fit."""
    return arch // 10 not in (9, 10)


def reads_results_from_tensor_memory(arch: int) -> bool:
    """Whether products are read out of tensor memory (sm_100), into registers beside those already in use."""
    return arch // 10 == 10


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def last_tile(size: int, block: int) -> int:
    """Rows of the last of several tiles of a block: the least of 16, 64, 128 that is enough, else the whole block."""
    rest = size % block
    if size <= block or not rest:
        return block
    return next((rows for rows in (16, 64, 128) if rest <= rows < block), block)


def has_tail(size: int, block: int) -> bool:
    """Whether a last tile of 16 saves padding: several larger ones, and at most 16 beside them."""
    return block > 16 and last_tile(size, block) == 16


def tall_tile(q: Tensor, arch: int) -> bool:
    """Whether tiles of 128 queries for eight warps pay: keys and values are read half as often.

    Not where most of such a tile would be padding, where too few programs are left, or where four warps take all.
    """
    B, H, N, _ = q.shape
    fits = q.element_size() == 2 and not reads_operands_from_registers(arch)
    return fits and N > 64 and cdiv(N, 128) * H * B >= PROGRAMS_WANTED


def tallest_tile(q: Tensor, keys: int) -> bool:
    """Whether tall tiles may have 256 queries: one piece of keys leaves them registers, and little is padding."""
    B, H, N, D = q.shape
    padded = cdiv(N, 256) * 256
    return keys <= 64 and D <= 64 and padded <= 1.07 * N and cdiv(N, 256) * H * B >= PROGRAMS_WANTED


def rest_block(size: int, block: int) -> int:
    """Size of the masked tile that takes what whole tiles leave: 16 where that is enough, 0 where nothing is left."""
    rest = size % block
    return 0 if not rest else min(16, block) if rest <= 16 else block


def images_per_program(batch: int, programs_per_image: int) -> int:
    """How many images one program walks through with its bias tile held: as many as leave enough programs."""
    groups = min(batch, max(1, cdiv(PROGRAMS_WANTED, programs_per_image)))
    return cdiv(batch, groups)


@lru_cache(maxsize=4096)
def images_in_one_wave(batch: int, programs_per_image: int) -> int:
    """The same where one program fills a multiprocessor: what keeps the busiest of them least busy."""

    def cost(images: int) -> tuple[int, int]:
        return cdiv(cdiv(batch, images) * programs_per_image, MULTIPROCESSORS) * images, -images

    return min(range(1, batch + 1), key=cost)


def pieces(n: int, count: int, most: int) -> tuple[int, ...]:
    """`count` sizes, powers of two from 16 to `most`, that sum to n or little more: 196 -> 128, 64, 16. 0: unused."""
    rest, sizes = cdiv(n, 16) * 16, []
    for left in range(count, 0, -1):
        fitting = 1 << (rest.bit_length() - 1) if rest else 0
        sizes.append(min(most, triton.next_power_of_2(rest) if left == 1 and rest else fitting))
        rest = max(0, rest - sizes[-1])
    if rest:
        raise ValueError(f"{n} does not fit in {count} pieces of at most {most}")
    return tuple(sizes)


def padded_head_dim(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


def stride_alignment(*tensors: Tensor) -> int:
    """ALIGN of a launch: a power of two up to 8 that divides every stride but the last of these [B, H, rows, D].

    0 if a tile's row offsets need 64 bits; the offsets of images and heads always have them.
    """
    align = 8
    for tensor in tensors:
        if tensor.shape[2] * tensor.stride(2) >= 2**31:
            return 0
        for stride in tensor.stride()[:-1]:
            while stride % align:
                align //= 2
    return align


def last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def kernels_run_on(tensor: Tensor) -> bool:
    """Whether this tensor goes through the Triton kernels; otherwise the plain PyTorch reference computes it."""
    return tensor.is_cuda or INTERPRETED


def check_interpretable(q: Tensor) -> None:
    if q.dtype == torch.bfloat16 and not q.is_cuda:
        raise ValueError("Triton's interpreter computes bfloat16 wrongly; use float16, float32 or no TRITON_INTERPRET")


def token_major(like: Tensor, n: int, dtype: torch.dtype | None = None) -> Tensor:
    """Empty [B, H, n, D] laid out as (B, n, H, D), for like of [B, H, ., D]."""
    b, h, _, d = like.shape
    return like.new_empty((b, n, h, d), dtype=dtype or like.dtype).transpose(1, 2)


def check_qkv(op: str, q: Tensor, k: Tensor, v: Tensor, **others: Tensor) -> None:
    """ValueError unless q is [B, H, N, D], k and v [B, H, M, D], of one supported dtype, all on one device."""
    if q.dim() != 4 or k.shape != v.shape or k.dim() != 4 or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise ValueError(
            f"{op}: q must be [B, H, N, D] and k, v [B, H, M, D]; "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if not (1 <= q.shape[2] <= 16384 and 1 <= k.shape[2] <= 16384 and 16 <= q.shape[3] <= 128):
        raise ValueError(
            f"{op}: N and M must be 1 to 16384 and D 16 to 128; got q {tuple(q.shape)}, k {tuple(k.shape)}"
        )
    if not (q.dtype == k.dtype == v.dtype) or q.dtype not in (*_SHORT_TYPES, torch.float64):
        raise ValueError(
            f"{op}: q, k, v must share one of float16, bfloat16, float32; got q {q.dtype}, k {k.dtype}, v {v.dtype}"
        )
    if q.dtype == torch.float64 and kernels_run_on(q):
        raise ValueError(f"{op}: the kernels take float16, bfloat16 or float32; got {q.dtype}")
    for name, tensor in {"k": k, "v": v, **others}.items():
        if tensor.device != q.device:
            raise ValueError(f"{op}: {name} is on {tensor.device} but q is on {q.device}")
        if not tensor.is_floating_point():
            raise ValueError(f"{op}: {name} must be of a floating dtype like q's {q.dtype}; got {tensor.dtype}")


def check_shape(op: str, name: str, tensor: Tensor, want: tuple[int, ...], q: Tensor) -> None:
    if tuple(tensor.shape) != want:
        raise ValueError(f"{op}: {name} must be {want} for q {tuple(q.shape)}; got {tuple(tensor.shape)}")


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast casts x to; None where it is off, for fp64, and on the meta device, which it does not know."""
    kind = x.device.type
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where autocast is on; unchanged otherwise."""
    dtype = autocast_dtype(tensors[0])
    return tensors if dtype is None else tuple(tensor.to(dtype) for tensor in tensors)


def softmax_gradient(softmax: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the scores behind a softmax, from the gradient of that softmax, in plain PyTorch.

    Written out, as autograd is out of reach inside an operator that a TorchDispatchMode watches.
    """
    return softmax * (grad - (softmax * grad).sum(-1, keepdim=True))


@triton.jit
def load_rows(
    ptr,  # [n_rows, D]
    stride,
    rows,  # [R]
    n_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[R, BLOCK_D] tile of rows; zero beyond n_rows and D."""
    offs_d = tl.arange(0, BLOCK_D)
    mask = rows[:, None] < n_rows
    if D < BLOCK_D:
        mask = mask & (offs_d[None, :] < D)
    return tl.load(ptr + rows[:, None] * stride + offs_d[None, :], mask=mask, other=0.0)


@triton.jit
def load_rows_or_last(
    ptr,  # [n_rows, D]
    stride,
    rows,  # [R]
    n_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[R, BLOCK_D] tile of rows; the last row again beyond n_rows, zero beyond D.

    For rows whose results weigh nothing: a load without a mask needs no zeroed registers and no predicates.
    """
    offs_d = tl.arange(0, BLOCK_D)
    pointers = ptr + tl.minimum(rows, n_rows - 1)[:, None] * stride + offs_d[None, :]
    if D == BLOCK_D:
        return tl.load(pointers)
    return tl.load(pointers, mask=(offs_d < D)[None, :], other=0.0)


@triton.jit
def store_rows(
    ptr,  # [n_rows, D]
    stride,
    tile,  # [R, BLOCK_D]
    rows,  # [R]
    n_rows,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store a tile of rows in the pointer's dtype, leaving out what lies beyond n_rows and D."""
    offs_d = tl.arange(0, BLOCK_D)
    mask = rows[:, None] < n_rows
    if D < BLOCK_D:
        mask = mask & (offs_d[None, :] < D)
    tl.store(ptr + rows[:, None] * stride + offs_d[None, :], tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def aligned(stride, ALIGN: tl.constexpr):
    """A stride as `stride_alignment` found it: 64-bit for 0, else with its divisor shown to the compiler.

    By itself the compiler looks for multiples of 16 only, and loads rows of 46 or 52 channels element by element.
    """
    # One return: a second one would have to be of the first one's type.
    return tl.cast(stride, tl.int64) if ALIGN == 0 else (stride // ALIGN) * ALIGN


@triton.jit
def load_bias(
    ptr,  # [n_rows, n_cols], or its row-padded expansion
    stride,
    rows,  # [R]
    n_rows,
    cols,  # [K]
    n_cols,
    EXPANDED: tl.constexpr,
):
    """[R, K] fp32 tile of the bias in units of log2, hugely negative outside of the matrix.

    An expanded bias is in units of log2 already and is as wide as its stride: its own padding is hugely negative.
    """
    OUTSIDE: tl.constexpr = -65504.0 if ptr.dtype.element_ty == tl.float16 else -1.0e30
    width = stride if EXPANDED else n_cols
    mask = (rows[:, None] < n_rows) & (cols[None, :] < width)
    tile = tl.load(ptr + rows[:, None] * stride + cols[None, :], mask=mask, other=OUTSIDE)
    return tile if EXPANDED else tile.to(tl.float32) * 1.4426950408889634


@triton.jit
def load_bias_or_last(
    ptr,  # [n_rows, n_cols], or its row-padded expansion
    stride,
    rows,  # [R]
    n_rows,
    cols,  # [K]
    n_cols,
    EXPANDED: tl.constexpr,
):
    """`load_bias` with the last row again beyond n_rows, for rows that weigh nothing: fewer masks."""
    pointers = ptr + tl.minimum(rows, n_rows - 1)[:, None] * stride + cols[None, :]
    OUTSIDE: tl.constexpr = -65504.0 if ptr.dtype.element_ty == tl.float16 else -1.0e30
    tile = tl.load(pointers, mask=(cols < (stride if EXPANDED else n_cols))[None, :], other=OUTSIDE)
    return tile if EXPANDED else tile.to(tl.float32) * 1.4426950408889634


@triton.jit
def load_bias_inside(ptr, stride, rows, n_rows, cols, EXPANDED: tl.constexpr):
    """`load_bias_or_last` where all columns are inside the matrix: no masks at all."""
    tile = tl.load(ptr + tl.minimum(rows, n_rows - 1)[:, None] * stride + cols[None, :])
    return tile if EXPANDED else tile.to(tl.float32) * 1.4426950408889634


@triton.jit
def store_scores(ptr, tile, rows, n_rows, cols, n_cols):
    """Store a tile [R, K] into a dense matrix [n_rows, n_cols], leaving out what lies beyond it."""
    pointers = ptr + rows[:, None] * n_cols + cols[None, :]
    tl.store(pointers, tile, mask=(rows[:, None] < n_rows) & (cols[None, :] < n_cols))


@triton.jit
def sum_rows(p, total):
    """total [R, 8] and the row sums of p [R, K] in every column: by the matrix unit, as the fp32 lanes are busy."""
    return tl.dot(p, tl.full([p.shape[1], 8], 1.0, p.dtype), total, input_precision="tf32x3")


@triton.jit
def sum_parts_kernel(
    out_ptr,  # [size]
    parts_ptr,  # [parts, size] fp32
    size,
    parts,
    BLOCK: tl.constexpr,
):
    """Sum of partial results in a fixed order, so that it is the same bit for bit from run to run."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(parts):
        total += tl.load(parts_ptr + tl.cast(part, tl.int64) * size + offs, mask=mask, other=0.0)
    tl.store(out_ptr + offs, total.to(out_ptr.dtype.element_ty), mask=mask)


def sum_parts_call(out: Tensor, parts: Tensor, pass_name: str) -> Call:
    """Launch of `sum_parts_kernel`: out (dense) is the sum over the first dimension of parts."""
    size, block = out.numel(), 1024
    args = {"out_ptr": out, "parts_ptr": parts, "size": size, "parts": parts.shape[0], "BLOCK": block}
    return Call(kernel=sum_parts_kernel, args=args, grid=cdiv(size, block), pass_name=pass_name)
