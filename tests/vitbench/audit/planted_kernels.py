"""A small attention-like kernel and the same with a slow-down planted: an extra exp2, a spill, narrow loads, no matrix
unit."""

from __future__ import annotations

from dataclasses import replace

import triton
import triton.language as tl
from vitkernels import Launch

TOKENS, DIM = 1024, 32


@triton.jit
def rows_of_scores(q_ptr, k_ptr, out_ptr, tokens, scale, PLANT: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, DIM)
    q = tl.load(q_ptr + row[:, None] * DIM + channel[None, :])
    total = tl.zeros((TILE,), tl.float32)
    if PLANT == "spill":
        wide = tl.arange(0, 4 * DIM)
        kept = tl.load(k_ptr + row[:, None] * 4 * DIM + wide[None, :]).to(tl.float32)
    for start in range(0, tokens, TILE):
        column = start + tl.arange(0, TILE)
        k = tl.load(k_ptr + column[:, None] * DIM + channel[None, :])
        if PLANT == "no matrix":
            scores = tl.sum(q[:, None, :].to(tl.float32) * k[None, :, :].to(tl.float32), 2)
        else:
            scores = tl.dot(q, k.trans())
        p = tl.exp2(scores * scale)
        if PLANT == "exp2":
            p = tl.exp2(p)
        if PLANT == "spill":
            total += tl.sum(kept * start, 1)
        total += tl.sum(p, 1)
    tl.store(out_ptr + row, total)


def audit_launches(arch: int) -> list[Launch]:
    plain = Launch(
        kernel=rows_of_scores, op="scores", case="plain", pass_name="fwd", dtype="bf16",
        args={"q_ptr": "*bf16", "k_ptr": "*bf16", "out_ptr": "*fp32", "tokens": TOKENS, "scale": 0.25,
              "PLANT": "none", "TILE": 64, "DIM": DIM},
        grid=(TOKENS // 64 * 96,), elements=96 * TOKENS * TOKENS, bytes=96 * (2 * 2 * TOKENS * DIM + 4 * TOKENS),
        matrix_flops=96 * 2 * TOKENS * TOKENS * DIM, special=96 * TOKENS * TOKENS, num_stages=2,
    )  # fmt: skip
    without = {**plain.args, "PLANT": "no matrix", "TILE": 16, "tokens": 64}
    return [
        plain,
        replace(plain, case="exp2", args={**plain.args, "PLANT": "exp2"}),
        replace(plain, case="no matrix", args=without, grid=(1536,)),
        replace(plain, case="spill", args={**plain.args, "PLANT": "spill"}, options={"maxnreg": 64}),
        replace(plain, case="narrow", unaligned=frozenset({"k_ptr"})),
    ]
