"""A grid of shapes that users bring, for the audit: do all attention kernels compile without spills there?

    vitbench audit --kernels tests/vitkernels/attention/user_shapes.py --compile-only --arch sm_80,sm_86 --part 1/40

Heads of 16 to 128 channels in steps of 8 and 35, 47, 63; 49, 197 and 577 queries and keys; rows of tokens one after
another, or one element further apart, so that loads are narrow. `make audit-compile` has the shapes of real models.
"""

from __future__ import annotations

from itertools import product

import torch
from vitkernels import Launch
from vitkernels.attention.bias import bias_backward_calls, bias_forward_calls
from vitkernels.attention.checks import token_major

HEAD_DIMS = (*range(16, 129, 8), 35, 47, 63)
TOKENS = (49, 197, 577)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def launches(n: int, m: int, head_dim: int, dtype: torch.dtype, apart: int, arch: int) -> list[Launch]:
    """Forward and backward of 64 images and 4 heads; apart: elements between the rows of a head, beyond its own."""
    B, H, D = 64, 4, head_dim

    def tokens(count: int) -> torch.Tensor:
        made = torch.empty((B, count, H, D + apart), device="meta", dtype=dtype)
        return made[..., :D].transpose(1, 2)

    q, k = tokens(n), tokens(m)
    dq, dk = token_major(q, n), token_major(k, m)
    bias, lse = torch.empty((H, n, m), device="meta"), torch.empty((B, H, 2, n), device="meta")
    calls = bias_forward_calls(dq, lse, q, k, k, bias, D**-0.5, arch)
    calls += bias_backward_calls(dq, dk, dk, bias, q, k, k, bias, dq, lse, dq, D**-0.5, arch)
    case = f"n{n}-m{m}-d{D}-{'apart' if apart else 'dense'}"
    return [call.audit("bias_attention", case, D, B * H * n * m) for call in calls if "q_ptr" in call.args]


def audit_launches(arch: int) -> list[Launch]:
    grid = product(TOKENS, TOKENS, HEAD_DIMS, DTYPES, (0, 1))
    return [launch for shape in grid for launch in launches(*shape, arch)]
