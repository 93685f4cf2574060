"""Problems of bias_attention, relative_attention and gated_attention."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from vitkernels import (
    BiasAttentionCase,
    GatedAttentionCase,
    RelativeAttentionCase,
    bias_attention,
    bias_attention_reference,
    bias_attention_work,
    expand_relative_bias,
    gated_attention,
    gated_attention_reference,
    gated_attention_work,
    relative_attention,
    relative_attention_reference,
    relative_attention_work,
)

from vitbench.kernel_bench.peers import aligned, cast, compiled, optional_impls, sdpa_impls
from vitbench.kernel_bench.problem import DTYPES, NEEDS_GPU, Impl, Problem
from vitbench.ops import bundle

_FUSED_LAUNCHES = {False: "fwd*", True: "fwd*+bwd*"}


def _qkv(B: int, H: int, N: int, M: int, D: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """q [B, H, N, D] and k, v [B, H, M, D] as slices of packed projections, which is how models have them."""

    def packed(tokens: int, parts: int) -> tuple[Tensor, ...]:
        made = torch.randn(B, tokens, parts, H, D, device=device).to(dtype)
        return made.permute(2, 0, 3, 1, 4).unbind(0)

    return [*packed(N, 3)] if N == M else [*packed(N, 1), *packed(M, 2)]


def _grad(q: Tensor, train: bool) -> Tensor | None:
    """Of the output, token-major as the projection behind it gives it."""
    B, H, N, D = q.shape
    return torch.randn(B, N, H, D, device=q.device).to(q.dtype).transpose(1, 2) if train else None


def _no_gpu(device: str) -> str:
    return NEEDS_GPU if device == "cpu" else ""


def small_bias(case: BiasAttentionCase) -> BiasAttentionCase:
    return replace(case, B=2, H=min(case.H, 2), N=min(case.N, 50), M=min(case.M, 49))


def bias_problem(case: BiasAttentionCase, dtype_name: str, device: str, train: bool) -> Problem:
    B, H, N, M, D = case.B, case.H, case.N, case.M, case.D
    dtype = DTYPES[dtype_name]
    inputs = [*_qkv(B, H, N, M, D, dtype, device), torch.randn(H, N, M, device=device)]
    own = cast(dtype)

    def with_aligned_mask(tensors: list[Tensor]) -> list[Tensor]:
        *qkv, bias = own(tensors)
        return [*qkv, aligned(bias)]

    impls = [
        Impl("fused", bias_attention, unsupported=_no_gpu(device), launches=_FUSED_LAUNCHES[train]),
        Impl("eager", bundle.eager_attention, own),
        *sdpa_impls(bundle.sdpa_attention, with_aligned_mask, N, train),
        Impl("flex", bundle.flex_attention, own),
        *optional_impls(own, lambda *x: [*x], device, train),
        Impl("compile", compiled(bundle.eager_attention), own),
    ]
    work = [bias_attention_work(B, H, N, M, D, dtype.itemsize, backward=b) for b in (False, True)[: 1 + train]]
    return Problem(inputs, _grad(inputs[0], train), bias_attention_reference, tuple(impls), tuple(work), 3, H * N * M)


def small_relative(case: RelativeAttentionCase) -> RelativeAttentionCase:
    return replace(case, B=2, H=2, grid=(min(case.grid[0], 7), min(case.grid[1], 6)))


def relative_problem(case: RelativeAttentionCase, dtype_name: str, device: str, train: bool) -> Problem:
    """In the pass fwd every implementation but `fused+expand` finds its bias expanded, as in a model that serves."""
    B, H, D, grid = case.B, case.H, case.D, case.grid
    N = grid[0] * grid[1]
    dtype = DTYPES[dtype_name]
    table = torch.randn((2 * grid[0] - 1) * (2 * grid[1] - 1), H, device=device)
    inputs = [*_qkv(B, H, N, N, D, dtype, device), table]

    def fused(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return relative_attention(q, k, v, table, grid)

    def fused_kept(q: Tensor, k: Tensor, v: Tensor, table: Tensor, expanded: Tensor) -> Tensor:
        return relative_attention(q, k, v, table, grid, expanded=expanded)

    def reference(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return relative_attention_reference(q, k, v, table, grid)

    def dense(tensors: list[Tensor]) -> list[Tensor]:
        return [*tensors[:3], bundle.relative_bias(tensors[3], grid).to(dtype)]

    def dense_aligned(tensors: list[Tensor]) -> list[Tensor]:
        *qkv, bias = dense(tensors)
        return [*qkv, aligned(bias)]

    def eager_train(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return bundle.eager_relative_attention(q, k, v, table, grid)

    def sdpa_train(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return bundle.sdpa_attention(q, k, v, aligned(bundle.relative_bias(table, grid).to(q.dtype)))

    def flex_train(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        return bundle.flex_relative_attention(q, k, v, table, grid)

    def dense_train(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> list[Tensor]:
        return [q, k, v, bundle.relative_bias(table, grid).to(q.dtype)]

    no_gpu = _no_gpu(device)
    if train:
        impls = [
            Impl("fused", fused, unsupported=no_gpu, launches="expand+fwd+bwd*"),
            Impl("eager", eager_train),
            *sdpa_impls(sdpa_train, list, N, train),
            Impl("flex", flex_train),
            *optional_impls(list, dense_train, device, train),
            Impl("compile", compiled(eager_train)),
        ]
    else:
        impls = [
            Impl("fused", fused_kept, lambda t: [*t, expand_relative_bias(t[3], grid, dtype)], no_gpu, launches="fwd"),
            Impl("fused+expand", fused, unsupported=no_gpu, launches="expand+fwd"),
            Impl("eager", bundle.eager_attention, dense),
            *sdpa_impls(bundle.sdpa_attention, dense_aligned, N, train),
            Impl("flex", bundle.flex_attention, dense),
            *optional_impls(dense, lambda *x: [*x], device, train),
            Impl("compile", compiled(bundle.eager_attention), dense),
        ]
    work = [relative_attention_work(B, H, grid, D, dtype.itemsize, backward=b) for b in (False, True)[: 1 + train]]
    return Problem(inputs, _grad(inputs[0], train), reference, tuple(impls), tuple(work), 3, H * N * N)


def small_gated(case: GatedAttentionCase) -> GatedAttentionCase:
    return replace(case, B=2, H=2, N=49)


def gated_problem(case: GatedAttentionCase, dtype_name: str, device: str, train: bool) -> Problem:
    """SDPA and FlexAttention compute one softmax: their positional half is a second product beside it."""
    B, H, N, D = case.B, case.H, case.N, case.D
    dtype = DTYPES[dtype_name]
    inputs = [
        *_qkv(B, H, N, N, D, dtype, device),
        torch.randn(H, N, N, device=device),
        torch.randn(H, device=device),
    ]
    own = cast(dtype)
    launches = {False: "fwd_weights+fwd", True: "fwd_weights+fwd+bwd*"}[train]
    impls = [
        Impl("fused", gated_attention, unsupported=_no_gpu(device), launches=launches),
        Impl("eager", bundle.eager_gated_attention, own),
        *sdpa_impls(bundle.sdpa_gated_attention, own, 0, train),  # without a mask cuDNN's bug is not met
        Impl("flex", bundle.flex_gated_attention, own),
        Impl("compile", compiled(bundle.eager_gated_attention), own),
    ]
    work = [gated_attention_work(B, H, N, D, dtype.itemsize, backward=b) for b in (False, True)[: 1 + train]]
    return Problem(inputs, _grad(inputs[0], train), gated_attention_reference, tuple(impls), tuple(work), 3, H * N * N)
