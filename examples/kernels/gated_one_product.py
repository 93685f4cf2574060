"""A design that was not chosen, kept so that its time can be compared: gated attention with one product P v.

    vitbench audit --kernels examples/kernels/gated_one_product.py --arch sm_90
    vitbench audit --kernel 'gated_attention/convit_small-224/fwd/*' --arch sm_90

P = (1 - g) softmax(S) + W is mixed before it meets v, so the scores of a whole row (here up to 208 keys) stay in
registers until their sum is known. `vitkernels.gated_attention` instead adds two products with the same v, which the
matrix unit has time for, while keys pass by in blocks: more instructions, in twice as many warps.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from vitkernels import Launch


@triton.jit
def _rows(ptr, stride, rows, last, D: tl.constexpr, BLOCK_D: tl.constexpr):
    channels = tl.arange(0, BLOCK_D)
    at = tl.minimum(rows, last)[:, None] * stride + channels[None, :]
    return tl.load(ptr + at, mask=(channels < D)[None, :], other=0.0)


@triton.jit
def _scores(q, k_ptr, stride, cols, N, scale_log2, D: tl.constexpr):
    s = tl.dot(q, tl.trans(_rows(k_ptr, stride, cols, N - 1, D, q.shape[1])))
    return tl.where(cols[None, :] < N, s * scale_log2, -1.0e30)


@triton.jit
def _add(acc, p, share, w_ptr, v_ptr, stride, rows, cols, N, P, D: tl.constexpr):
    at = tl.minimum(rows, N - 1)[:, None] * P + cols[None, :]
    w = tl.load(w_ptr + at, mask=(cols < P)[None, :], other=0.0).to(tl.float32)
    v = _rows(v_ptr, stride, cols, N - 1, D, acc.shape[1])
    return tl.dot((p * share + w).to(v.dtype), v, acc)


@triton.jit
def _gated_one_product_kernel(
    out_ptr,  # [B, N, H, D]
    q_ptr,  # [B, N, H, D]
    k_ptr,  # [B, N, H, D]
    v_ptr,  # [B, N, H, D]
    w_ptr,  # [H, N, P] g softmax(positional), with P = N padded to 16
    gate_ptr,  # [H]
    H,
    N,
    P,
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tiles = tl.cdiv(N, BLOCK_N)
    tile, h = tl.program_id(0) % tiles, tl.program_id(0) // tiles % H
    stride = H * D
    at = (tl.program_id(0) // (tiles * H)).to(tl.int64) * N * stride + h * D
    q_ptr, k_ptr, v_ptr, out_ptr, w_ptr = q_ptr + at, k_ptr + at, v_ptr + at, out_ptr + at, w_ptr + h * N * P
    rows = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    q = _rows(q_ptr, stride, rows, N - 1, D, BLOCK_D)
    c0, c1, c2 = tl.arange(0, 128), 128 + tl.arange(0, 64), 192 + tl.arange(0, 16)
    s0 = _scores(q, k_ptr, stride, c0, N, scale_log2, D)
    s1 = _scores(q, k_ptr, stride, c1, N, scale_log2, D)
    s2 = _scores(q, k_ptr, stride, c2, N, scale_log2, D)
    top = tl.maximum(tl.maximum(tl.max(s0, 1), tl.max(s1, 1)), tl.max(s2, 1))[:, None]
    p0, p1, p2 = tl.math.exp2(s0 - top), tl.math.exp2(s1 - top), tl.math.exp2(s2 - top)
    share = (tl.sigmoid(-tl.load(gate_ptr + h).to(tl.float32)) / (tl.sum(p0, 1) + tl.sum(p1, 1) + tl.sum(p2, 1)))[
        :, None
    ]
    acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc = _add(acc, p0, share, w_ptr, v_ptr, stride, rows, c0, N, P, D)
    acc = _add(acc, p1, share, w_ptr, v_ptr, stride, rows, c1, N, P, D)
    acc = _add(acc, p2, share, w_ptr, v_ptr, stride, rows, c2, N, P, D)
    channels = tl.arange(0, BLOCK_D)
    mask = (rows < N)[:, None] & (channels < D)[None, :]
    tl.store(out_ptr + rows[:, None] * stride + channels[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)


def _sizes(heads: int, n: int, head_dim: int) -> dict[str, int]:
    return {
        "H": heads, "N": n, "P": -(-n // 16) * 16, "D": head_dim, "BLOCK_D": triton.next_power_of_2(head_dim),
        "BLOCK_N": 128,
    }  # fmt: skip


def gated_one_product(q: Tensor, k: Tensor, v: Tensor, weights: Tensor, gate: Tensor, scale: float) -> Tensor:
    """(1 - g) softmax(q k^T * scale) v + weights v for q, k, v [B, N, H, D] contiguous, N up to 208.

    Args:
        weights: [H, N, N padded to 16] in q.dtype, g softmax(positional); gate: [H], before the sigmoid.
    """
    B, N, H, D = q.shape
    out = torch.empty_like(q)
    sizes = _sizes(H, N, D)
    grid = (-(-N // sizes["BLOCK_N"]) * H * B,)
    scale_log2 = scale * 1.4426950408889634
    _gated_one_product_kernel[grid](
        out, q, k, v, weights, gate, scale_log2=scale_log2, **sizes, num_warps=8, num_stages=1
    )
    return out


def audit_launches(arch: int) -> list[Launch]:
    """ConViT-S at 224 px, batch 64, bf16."""
    B, H, N, D = 64, 9, 196, 48
    sizes = _sizes(H, N, D)
    pointers = {f"{name}_ptr": "*bf16" for name in ("out", "q", "k", "v", "w")} | {"gate_ptr": "*fp32"}
    return [
        Launch(
            kernel=_gated_one_product_kernel, op="gated_one_product", case="convit_small-224", pass_name="fwd",
            dtype="bf16", args=pointers | sizes | {"scale_log2": 0.2}, grid=(-(-N // sizes["BLOCK_N"]) * H * B,),
            elements=B * H * N * N, bytes=4 * B * H * N * D * 2 + H * N * N * 4, matrix_flops=4 * B * H * N * N * D,
            special=B * H * N * N, num_warps=8, num_stages=1,
        )
    ]  # fmt: skip
