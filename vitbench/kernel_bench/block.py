"""Problems of reduced_attention: CMT's whole attention sub-block, beside it the same layers one by one."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from vitkernels import (
    ReducedAttentionCase,
    ReducedAttentionWeights,
    reduced_attention,
    reduced_attention_reference,
    reduced_attention_work,
)
from vitkernels.layers import reduced_block_serves

from vitbench.kernel_bench.peers import cast, compiled, sdpa_impls
from vitbench.kernel_bench.problem import DTYPES, NEEDS_GPU, Call, Impl, Problem
from vitbench.ops import bundle


def small_reduced(case: ReducedAttentionCase) -> ReducedAttentionCase:
    return replace(case, B=2, h=2 * case.r if case.r > 1 else 4)


def _separate(
    attend: Call, w: ReducedAttentionWeights, x: Tensor, bias: Tensor, h: int, heads: int, train: bool
) -> Tensor:
    """The sub-block as PyTorch's layers in x's dtype."""
    normed = F.layer_norm(x, (x.shape[2],), w.norm_weight, w.norm_bias, 1e-6)
    reduced = normed
    if w.reduce_weight is not None:
        image = normed.transpose(1, 2).unflatten(2, (h, h))
        image = F.conv2d(image, w.reduce_weight, w.reduce_bias, w.reduce_weight.shape[-1], groups=x.shape[2])
        image = F.batch_norm(image, w.bn_mean, w.bn_var, w.bn_weight, w.bn_bias, training=train)
        reduced = image.flatten(2).transpose(1, 2)

    def split(t: Tensor) -> Tensor:
        return t.unflatten(2, (heads, -1)).transpose(1, 2)

    q = split(F.linear(normed, w.q_weight, w.q_bias))
    k, v = split(F.linear(reduced, w.k_weight, w.k_bias)), split(F.linear(reduced, w.v_weight, w.v_bias))
    return x + F.linear(attend(q, k, v, bias).transpose(1, 2).flatten(2), w.proj_weight, w.proj_bias)


def reduced_problem(case: ReducedAttentionCase, dtype_name: str, device: str, train: bool) -> Problem:
    """In the pass fwd+bwd the norm uses its batch's statistics, so that no image stands alone."""
    dtype = DTYPES[dtype_name]
    tokens, keys, C = case.h * case.h, (case.h // case.r) ** 2, case.C

    def matrix() -> Tensor:
        return (torch.randn(C, C, device=device) / C**0.5).to(dtype)

    weights = ReducedAttentionWeights(
        1 + 0.1 * torch.randn(C, device=device), torch.randn(C, device=device),
        *(made for _ in range(4) for made in (matrix(), torch.randn(C, device=device))),
    )  # fmt: skip
    if case.r > 1:
        taps = (torch.randn(C, 1, case.r, case.r, device=device) / case.r).to(dtype)
        weights = weights._replace(
            reduce_weight=taps, reduce_bias=torch.randn(C, device=device),
            bn_weight=1 + 0.1 * torch.randn(C, device=device), bn_bias=torch.randn(C, device=device),
        )  # fmt: skip
    names = [name for name, t in weights._asdict().items() if t is not None]
    given = weights._asdict()
    inputs = [
        torch.randn(case.B, tokens, C, device=device).to(dtype),
        torch.randn(case.heads, tokens, keys, device=device),
        *(given[name] for name in names),
    ]

    running = {
        kind: (torch.zeros(C, dtype=kind, device=device), torch.ones(C, dtype=kind, device=device))
        for kind in (dtype, torch.float32, torch.float64)
    }

    def packed(tensors: tuple[Tensor, ...]) -> ReducedAttentionWeights:
        found = dict(zip(names, tensors, strict=True))
        if case.r > 1:
            mean, var = running[found["bn_weight"].dtype]
            found |= {"bn_mean": mean, "bn_var": var}
        return ReducedAttentionWeights(**found)

    def ours(x: Tensor, bias: Tensor, *tensors: Tensor) -> Tensor:
        return reduced_attention(x, bias, packed(tensors), (case.h, case.h), case.heads, training=train)

    def reference(x: Tensor, bias: Tensor, *tensors: Tensor) -> Tensor:
        return reduced_attention_reference(x, bias, packed(tensors), (case.h, case.h), case.heads, training=train)

    def eager(x: Tensor, bias: Tensor, *tensors: Tensor) -> Tensor:
        return _separate(bundle.eager_attention, packed(tensors), x, bias, case.h, case.heads, train)

    def sdpa(x: Tensor, bias: Tensor, *tensors: Tensor) -> Tensor:
        return _separate(bundle.sdpa_attention, packed(tensors), x, bias, case.h, case.heads, train)

    own = cast(dtype)
    # Only the kernels of the whole block are audited under this name; elsewhere it runs those of other operations.
    whole = not train and reduced_block_serves(inputs[0], inputs[1], case.heads, ())
    launches = "fwd_kv+fwd" if whole else ""
    impls = (
        Impl("fused", ours, unsupported=NEEDS_GPU if device == "cpu" else "", launches=launches),
        Impl("eager", eager, own),
        *sdpa_impls(sdpa, own, tokens, train),
        Impl("compile", compiled(eager), own),
    )
    work = [
        reduced_attention_work(case.B, tokens, keys, C, itemsize=dtype.itemsize, heads=case.heads, backward=backward)
        for backward in (False, True)[: 1 + train]
    ]
    grad = torch.randn_like(inputs[0]) if train else None
    largest = tokens * max(C, case.heads * keys)
    return Problem(inputs, grad, reference, impls, tuple(work), 0 if train else 1, largest)
