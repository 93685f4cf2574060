"""C = A B in tiles, as matrix products are usually written in Triton: the measure of published timings.

    vitbench audit --kernels examples/kernels/matmul.py --arch sm_90

Programs are numbered so that those that run at the same time share rows of A and columns of B in the L2 cache: they go
down GROUP tiles of rows before they go on to the next tile of columns. Row and column indices wrap around instead of
being masked, only the inner dimension is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from vitkernels import Launch

GROUP = 8


@triton.jit
def matmul_kernel(
    c_ptr,  # [M, N]
    a_ptr,  # [M, K]
    b_ptr,  # [K, N]
    m,
    n,
    k,
    stride_a,
    stride_b,
    stride_c,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    pid = tl.program_id(0)
    rows, columns = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    group = pid // (GROUP * columns)
    first = group * GROUP
    height = min(rows - first, GROUP)
    pid_m = first + pid % (GROUP * columns) % height
    pid_n = pid % (GROUP * columns) // height

    offs_k = tl.arange(0, BLOCK_K)
    wrapped_m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M)) % m
    wrapped_n = (pid_n * BLOCK_N + tl.arange(0, BLOCK_N)) % n
    a_at = a_ptr + wrapped_m[:, None] * stride_a + offs_k[None, :]
    b_at = b_ptr + offs_k[:, None] * stride_b + wrapped_n[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        a = tl.load(a_at, mask=offs_k[None, :] < k - start, other=0.0)  # [BLOCK_M, BLOCK_K]
        b = tl.load(b_at, mask=offs_k[:, None] < k - start, other=0.0)  # [BLOCK_K, BLOCK_N]
        acc = tl.dot(a, b, acc)
        a_at += BLOCK_K
        b_at += BLOCK_K * stride_b
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    c_at = c_ptr + offs_m[:, None] * stride_c + offs_n[None, :]
    tl.store(c_at, acc.to(c_ptr.dtype.element_ty), mask=(offs_m[:, None] < m) & (offs_n[None, :] < n))


@dataclass(frozen=True)
class Tiles:
    """Block sizes, stages of the software pipeline, warps."""

    m: int
    n: int
    k: int
    stages: int
    warps: int


#: From large and slow to start to small: which is best depends on the matrices and on the card.
TILES = (
    Tiles(128, 256, 64, 3, 8), Tiles(64, 256, 32, 4, 4), Tiles(128, 128, 32, 4, 4), Tiles(128, 64, 32, 4, 4),
    Tiles(64, 128, 32, 4, 4), Tiles(128, 32, 32, 4, 4), Tiles(64, 32, 32, 5, 2), Tiles(32, 64, 32, 5, 2),
)  # fmt: skip


def matmul(a: Tensor, b: Tensor, tiles: Tiles = TILES[3]) -> Tensor:
    """A B.

    Args:
        a: [M, K]; b: [K, N]; fp16, bf16 or fp32, last dimension contiguous.

    Raises: ValueError on shapes that do not fit, or strides.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or a.stride(1) != 1 or b.stride(1) != 1:
        raise ValueError(f"matmul needs [M, K] and [K, N] with contiguous rows, got {tuple(a.shape)}, {tuple(b.shape)}")
    c = torch.empty((a.shape[0], b.shape[1]), dtype=a.dtype, device=a.device)
    matmul_kernel[_grid(*c.shape, tiles)](
        c, a, b, *c.shape, a.shape[1], a.stride(0), b.stride(0), c.stride(0), BLOCK_M=tiles.m, BLOCK_N=tiles.n,
        BLOCK_K=tiles.k, GROUP=GROUP, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return c


def _grid(m: int, n: int, tiles: Tiles) -> tuple[int]:
    return (triton.cdiv(m, tiles.m) * triton.cdiv(n, tiles.n),)


def launch(m: int, n: int, k: int, tiles: Tiles, case: str = "") -> Launch:
    """The launch of a product of fp16 matrices, for the audit."""
    return Launch(
        kernel=matmul_kernel, op="matmul", case=case or f"{m}x{n}x{k}-{tiles.m}x{tiles.n}x{tiles.k}", pass_name="fwd",
        dtype="fp16",
        args={
            "c_ptr": "*fp16", "a_ptr": "*fp16", "b_ptr": "*fp16", "m": m, "n": n, "k": k, "stride_a": k, "stride_b": n,
            "stride_c": n, "BLOCK_M": tiles.m, "BLOCK_N": tiles.n, "BLOCK_K": tiles.k, "GROUP": GROUP,
        },
        grid=_grid(m, n, tiles), num_warps=tiles.warps, num_stages=tiles.stages, elements=m * n,
        bytes=2 * (m * k + k * n + m * n), matrix_flops=2 * m * n * k,
    )  # fmt: skip


#: Products of CMT-S at 224 px, batch 64, as a library would make them beside fused attention: q or the projection, and
#: keys and values in one.
CMT = {"cmt_s-a-q": (64 * 56 * 56, 64, 64), "cmt_s-a-kv": (64 * 49, 128, 64), "cmt_s-b-q": (64 * 28 * 28, 128, 128),
       "cmt_s-b-kv": (64 * 49, 256, 128)}  # fmt: skip


def audit_launches(arch: int) -> list[Launch]:
    """A square product with each of TILES, and CMT's with the small ones."""
    square = [launch(2048, 2048, 2048, tiles) for tiles in TILES]
    return square + [
        launch(*shape, tiles, f"{case}-{tiles.m}x{tiles.n}x{tiles.k}")
        for case, shape in CMT.items()
        for tiles in TILES[2:6]
    ]
