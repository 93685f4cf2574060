"""The whole-block launches of `reduced_attention` at its cases, as the audit reads them."""

from __future__ import annotations

from dataclasses import replace

import torch

from vitkernels.reduced.attention import REDUCED_ATTENTION_CASES, ReducedAttentionCase, ReducedAttentionWeights
from vitkernels.reduced.operators import block_calls, block_fits, padded_keys
from vitkernels.runtime.launch import Launch


def audit_launches(arch: int) -> list[Launch]:
    """Both kernels at every case they serve, in bf16; the other cases run audited kernels of their own."""
    found: list[Launch] = []
    for case in REDUCED_ATTENTION_CASES:
        if block_fits(case.C, case.heads, (case.h // case.r) ** 2, torch.bfloat16, arch):
            found += _launches(case, arch)
    return found


def _launches(case: ReducedAttentionCase, arch: int) -> list[Launch]:
    half = {"dtype": torch.bfloat16, "device": "meta"}
    tokens, keys, channels = case.h * case.h, (case.h // case.r) ** 2, case.C
    x = torch.empty(case.B, tokens, channels, **half)  # type: ignore[call-overload]
    square = torch.empty(channels, channels, **half)  # type: ignore[call-overload]
    vector = torch.empty(channels, device="meta")
    taps = torch.empty(channels, 1, case.r, case.r, **half) if case.r > 1 else None  # type: ignore[call-overload]
    affine = vector if case.r > 1 else None
    k = torch.empty(case.B, keys, channels, **half)  # type: ignore[call-overload]
    # As `expand_block_bias` makes it, whose arithmetic on the meta device imports torch._dynamo, 2 s of every audit.
    bias = torch.empty(case.heads, tokens, padded_keys(keys), **half)  # type: ignore[call-overload]
    pair = (square, vector)
    w = ReducedAttentionWeights(vector, vector, *pair, *pair, *pair, *pair, taps)
    calls = block_calls(x, k, k, x, bias, w, affine, affine, case.h, case.heads, 1e-6, 1.0, arch, True)
    rows = case.B * tokens
    products = (4 * case.B * keys * channels**2, 4 * rows * channels * (channels + keys))
    return [
        replace(call.audit("reduced_attention", f"{case.name}-b{case.B}", 0, rows * channels), matrix_flops=flops)
        for call, flops in zip(calls, products, strict=True)
    ]
