"""softmax(q k^T scale) v without storing the scores, forward and backward: the textbook kernel of published timings.

    vitbench audit --kernels examples/kernels/streaming_attention.py --arch sm_90

Forward: a program holds BLOCK_M queries and their running softmax (largest score, sum, output) while BLOCK_N keys at a
time stream by; blocks below the diagonal of a causal mask need none. Backward: a program first holds the keys' dk and
dv while queries stream by, then dq of as many queries while keys do, scores recomputed both times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from vitkernels import Launch

LOG2_E = 1.4426950408889634


@triton.jit
def _accumulate(
    acc, top, total, q, k_ptr, v_ptr, offs_m, n, stride_m, scale_log2, start, stop,
    BLOCK_N: tl.constexpr, D: tl.constexpr, DIAGONAL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Keys from start to stop, BLOCK_N at a time."""
    offs_n = start + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, D)
    k_at = k_ptr + offs_n[None, :] * stride_m + offs_d[:, None]
    v_at = v_ptr + offs_n[:, None] * stride_m + offs_d[None, :]
    for first in range(start, stop, BLOCK_N):
        here = first + tl.arange(0, BLOCK_N)
        if EVEN:
            k = tl.load(k_at)  # [D, BLOCK_N]
        else:
            k = tl.load(k_at, mask=here[None, :] < n, other=0.0)
        scores = tl.dot(q, k) * scale_log2  # [BLOCK_M, BLOCK_N]
        if DIAGONAL:
            scores = tl.where(offs_m[:, None] >= here[None, :], scores, -1.0e6)
        if not EVEN:
            scores = tl.where(here[None, :] < n, scores, -1.0e6)
        higher = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        if EVEN:
            v = tl.load(v_at)  # [BLOCK_N, D]
        else:
            v = tl.load(v_at, mask=here[:, None] < n, other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc)
        top = higher
        k_at += BLOCK_N * stride_m
        v_at += BLOCK_N * stride_m
    return acc, top, total


@triton.jit
def forward_kernel(
    o_ptr, q_ptr, k_ptr, v_ptr,  # [B, H, N, D] with any strides but the last
    lse_ptr,  # [B, H, N], log2 of the softmax's denominator
    heads, n, stride_b, stride_h, stride_m, scale_log2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    pid_m, image_head = tl.program_id(0), tl.program_id(1)
    base = (image_head // heads).to(tl.int64) * stride_b + (image_head % heads).to(tl.int64) * stride_h
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, D)
    at = base + offs_m[:, None] * stride_m + offs_d[None, :]
    if EVEN:
        q = tl.load(q_ptr + at)
    else:
        q = tl.load(q_ptr + at, mask=offs_m[:, None] < n, other=0.0)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if CAUSAL:
        diagonal = pid_m * BLOCK_M
        acc, top, total = _accumulate(
            acc, top, total, q, k_ptr + base, v_ptr + base, offs_m, n, stride_m, scale_log2, 0, diagonal, BLOCK_N, D,
            False, EVEN,
        )  # fmt: skip
        stop = min(diagonal + BLOCK_M, n)
        acc, top, total = _accumulate(
            acc, top, total, q, k_ptr + base, v_ptr + base, offs_m, n, stride_m, scale_log2, diagonal, stop, BLOCK_N,
            D, True, EVEN,
        )  # fmt: skip
    else:
        acc, top, total = _accumulate(
            acc, top, total, q, k_ptr + base, v_ptr + base, offs_m, n, stride_m, scale_log2, 0, n, BLOCK_N, D, False,
            EVEN,
        )  # fmt: skip
    o = (acc / total[:, None]).to(o_ptr.dtype.element_ty)
    lse = top + tl.log2(total)
    if EVEN:
        tl.store(lse_ptr + image_head.to(tl.int64) * n + offs_m, lse)
        tl.store(o_ptr + at, o)
    else:
        tl.store(lse_ptr + image_head.to(tl.int64) * n + offs_m, lse, mask=offs_m < n)
        tl.store(o_ptr + at, o, mask=offs_m[:, None] < n)


@triton.jit
def delta_kernel(
    delta_ptr,  # [B * H, N]
    o_ptr, do_ptr,  # [B * H, N, D], contiguous
    n, BLOCK_M: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(o * do)."""
    row = tl.program_id(1).to(tl.int64) * n + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    at = row[:, None] * D + tl.arange(0, D)[None, :]
    o = tl.load(o_ptr + at)
    do = tl.load(do_ptr + at).to(tl.float32)
    tl.store(delta_ptr + row, tl.sum(o * do, 1))


@triton.jit
def _gather_by_key(
    dk, dv, k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, offs_n, scale_log2, start, steps,
    BLOCK_M: tl.constexpr, D: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys from `steps` blocks of queries."""
    offs_d = tl.arange(0, D)
    rows = start + tl.arange(0, BLOCK_M)
    q_at = q_ptr + rows[None, :] * D + offs_d[:, None]
    do_at = do_ptr + rows[:, None] * D + offs_d[None, :]
    for step in range(steps):
        here = start + step * BLOCK_M + tl.arange(0, BLOCK_M)
        q = tl.load(q_at)  # [D, BLOCK_M], transposed
        lse = tl.load(lse_ptr + here)
        p = tl.exp2(tl.dot(k, q) * scale_log2 - lse[None, :])  # [BLOCK_N, BLOCK_M], transposed
        if DIAGONAL:
            p = tl.where(here[None, :] >= offs_n[:, None], p, 0.0)
        do = tl.load(do_at)
        dv = tl.dot(p.to(do.dtype), do, dv)
        delta = tl.load(delta_ptr + here)
        ds = p * (tl.dot(v, tl.trans(do)) - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), tl.trans(q), dk)
        q_at += BLOCK_M * D
        do_at += BLOCK_M * D
    return dk, dv


@triton.jit
def _gather_by_query(
    dq, q, do, lse, delta, k_ptr, v_ptr, offs_m, scale_log2, start, steps,
    BLOCK_N: tl.constexpr, D: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries from `steps` blocks of keys."""
    offs_d = tl.arange(0, D)
    rows = start + tl.arange(0, BLOCK_N)
    k_at = k_ptr + rows[None, :] * D + offs_d[:, None]
    v_at = v_ptr + rows[None, :] * D + offs_d[:, None]
    for step in range(steps):
        here = start + step * BLOCK_N + tl.arange(0, BLOCK_N)
        k = tl.load(k_at)  # [D, BLOCK_N], transposed
        v = tl.load(v_at)
        p = tl.exp2(tl.dot(q, k) * scale_log2 - lse[:, None])
        if DIAGONAL:
            p = tl.where(offs_m[:, None] >= here[None, :], p, 0.0)
        ds = p * (tl.dot(do, v) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), tl.trans(k), dq)
        k_at += BLOCK_N * D
        v_at += BLOCK_N * D
    return dq


@triton.jit
def backward_kernel(
    dq_ptr, dk_ptr, dv_ptr, q_ptr, k_ptr, v_ptr, do_ptr,  # [B * H, N, D], contiguous
    lse_ptr, delta_ptr,  # [B * H, N]
    n, scale, scale_log2,
    INNER: tl.constexpr, OUTER: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """A program does OUTER keys, INNER queries at a time, then OUTER queries, INNER keys at a time."""
    row = tl.program_id(1).to(tl.int64) * n
    first = tl.program_id(0) * OUTER
    base = row * D
    held = first + tl.arange(0, OUTER)
    at = base + held[:, None] * D + tl.arange(0, D)[None, :]
    k = tl.load(k_ptr + at)
    v = tl.load(v_ptr + at)
    dk = tl.zeros((OUTER, D), tl.float32)
    dv = tl.zeros((OUTER, D), tl.float32)
    begin = first if CAUSAL else 0
    if CAUSAL:
        # The diagonal in smaller steps: half of what they compute is masked.
        dk, dv = _gather_by_key(
            dk, dv, k, v, q_ptr + base, do_ptr + base, lse_ptr + row, delta_ptr + row, held, scale_log2, first,
            OUTER // (INNER // 2), INNER // 2, D, True,
        )  # fmt: skip
        begin = first + OUTER
    dk, dv = _gather_by_key(
        dk, dv, k, v, q_ptr + base, do_ptr + base, lse_ptr + row, delta_ptr + row, held, scale_log2, begin,
        (n - begin) // INNER, INNER, D, False,
    )  # fmt: skip
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty))
    tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty))

    q = tl.load(q_ptr + at)
    do = tl.load(do_ptr + at)
    lse = tl.load(lse_ptr + row + held)
    delta = tl.load(delta_ptr + row + held)
    dq = tl.zeros((OUTER, D), tl.float32)
    stop = first if CAUSAL else n
    if CAUSAL:
        dq = _gather_by_query(
            dq, q, do, lse, delta, k_ptr + base, v_ptr + base, held, scale_log2, first, OUTER // (INNER // 2),
            INNER // 2, D, True,
        )  # fmt: skip
    dq = _gather_by_query(
        dq, q, do, lse, delta, k_ptr + base, v_ptr + base, held, scale_log2, 0, stop // INNER, INNER, D, False
    )
    tl.store(dq_ptr + at, (dq * scale).to(dq_ptr.dtype.element_ty))


@dataclass(frozen=True)
class Blocks:
    """Queries a program holds, keys that stream by at a time, stages of the software pipeline, warps."""

    m: int
    n: int
    stages: int
    warps: int


FORWARD = (
    Blocks(128, 64, 3, 4), Blocks(128, 32, 3, 4), Blocks(64, 64, 3, 4), Blocks(64, 32, 4, 4), Blocks(128, 64, 3, 8),
    Blocks(128, 128, 3, 8),
)  # fmt: skip
INNER, OUTER = 32, 128
_BACKWARD = {"num_stages": 5, "num_warps": 4}


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, blocks: Blocks = FORWARD[0]) -> tuple[Tensor, Tensor]:
    """The output, and log2 of the softmax's denominators.

    Args:
        q, k, v: [B, H, N, D] with equal strides, the last one 1; scores are scaled by D ** -0.5.

    Raises: ValueError on strides that differ.
    """
    if not q.stride() == k.stride() == v.stride() or q.stride(3) != 1:
        raise ValueError(f"q, k and v need equal strides, the last one 1: {q.stride()}, {k.stride()}, {v.stride()}")
    b, h, n, d = q.shape
    o, lse = torch.empty_like(q), torch.empty(b, h, n, device=q.device)
    forward_kernel[(triton.cdiv(n, blocks.m), b * h)](
        o, q, k, v, lse, h, n, *q.stride()[:3], d**-0.5 * LOG2_E, blocks.m, blocks.n, d, causal, n % blocks.m == 0,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return o, lse


def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; all [B, H, N, D], contiguous, N a multiple of OUTER.

    Raises: ValueError on another N.
    """
    b, h, n, d = q.shape
    if n % OUTER:
        raise ValueError(f"the backward pass takes multiples of {OUTER} tokens, got {n}")
    dq, dk, dv, delta = torch.empty_like(q), torch.empty_like(q), torch.empty_like(q), torch.empty_like(lse)
    grid = (n // OUTER, b * h)
    delta_kernel[grid](delta, o, do, n, OUTER, d)
    backward_kernel[grid](
        dq, dk, dv, q, k, v, do, lse, delta, n, d**-0.5, d**-0.5 * LOG2_E, INNER, OUTER, d, causal, **_BACKWARD
    )
    return dq, dk, dv


def _case(b: int, h: int, n: int, d: int, causal: bool) -> str:
    return f"b{b}-h{h}-n{n}-d{d}-{'causal' if causal else 'full'}"


def forward_launch(b: int, h: int, n: int, d: int, causal: bool, blocks: Blocks, masked: bool = False) -> Launch:
    """A forward pass in fp16; masked where a kernel does not know that blocks fill the sequence."""
    scores = b * h * n * n // (2 if causal else 1)
    return Launch(
        kernel=forward_kernel, op="streaming_attention", pass_name="fwd", dtype="fp16",
        case=f"{_case(b, h, n, d, causal)}-{blocks.m}x{blocks.n}-s{blocks.stages}-w{blocks.warps}{'-masked' * masked}",
        args={
            "o_ptr": "*fp16", "q_ptr": "*fp16", "k_ptr": "*fp16", "v_ptr": "*fp16", "lse_ptr": "*fp32", "heads": h,
            "n": n, "stride_b": h * n * d, "stride_h": n * d, "stride_m": d,
            "scale_log2": d**-0.5 * LOG2_E, "BLOCK_M": blocks.m, "BLOCK_N": blocks.n, "D": d, "CAUSAL": causal,
            "EVEN": n % blocks.m == 0 and not masked,
        },
        grid=(triton.cdiv(n, blocks.m), b * h), num_warps=blocks.warps, num_stages=blocks.stages, elements=scores,
        bytes=b * h * n * (8 * d + 4), matrix_flops=4 * scores * d, special=scores,
    )  # fmt: skip


def backward_launches(b: int, h: int, n: int, d: int, causal: bool) -> list[Launch]:
    """A backward pass in fp16."""
    scores = b * h * n * n // (2 if causal else 1)
    tensor, vector = 2 * b * h * n * d, 4 * b * h * n
    case = _case(b, h, n, d, causal)
    grid = (n // OUTER, b * h)
    plain = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "do_ptr", "dq_ptr", "dk_ptr", "dv_ptr"), "*fp16")
    return [
        Launch(
            kernel=delta_kernel, op="streaming_attention", case=case, pass_name="bwd_delta", dtype="fp16",
            args={"delta_ptr": "*fp32", "o_ptr": "*fp16", "do_ptr": "*fp16", "n": n, "BLOCK_M": OUTER, "D": d},
            grid=grid, elements=b * h * n * d, bytes=2 * tensor + vector,
        ),
        Launch(
            kernel=backward_kernel, op="streaming_attention", case=case, pass_name="bwd", dtype="fp16",
            args={
                **plain, "lse_ptr": "*fp32", "delta_ptr": "*fp32", "n": n, "scale": d**-0.5,
                "scale_log2": d**-0.5 * LOG2_E, "INNER": INNER, "OUTER": OUTER, "D": d, "CAUSAL": causal,
            },
            grid=grid, **_BACKWARD, elements=scores, bytes=7 * tensor + 2 * vector, matrix_flops=10 * scores * d,
            special=scores,
        ),
    ]  # fmt: skip


def audit_launches(arch: int) -> list[Launch]:
    """A causal and a full forward with each of FORWARD, and a backward pass."""
    forward = [forward_launch(4, 32, 1024, 64, causal, blocks) for causal in (True, False) for blocks in FORWARD]
    return [*forward, *backward_launches(4, 32, 1024, 64, True)]
