"""bias_attention: softmax(q k^T * scale + bias) v, with a dense bias for each head, shared by the images of a batch.

Fused: both products, the bias, the softmax. The N x M scores never leave the chip. Cannot be avoided: reading q, k, v
and bias once and writing the output (bytes), 4 B H N M D floating-point operations, B H N M exp2.

The kernels are in forward/ and backward/, whose plan.py choose by shape. A large batch reads each number of the bias
from the L2 cache again and again: there padding.py writes it once in the dtype of q, in rows of a multiple of 16 keys.
Scaled dot-product attention: Vaswani et al., arXiv:1706.03762; the softmax in blocks: Milakov and Gimelshein,
arXiv:1805.02867; Dao et al., arXiv:2205.14135.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkernels.attention.backward.plan import backward_calls, bias_parts
from vitkernels.attention.checks import Shape, check_qkv, check_shape, last_contiguous, softmax_gradient, token_major
from vitkernels.attention.forward.plan import forward_calls, holds_bias
from vitkernels.attention.padding import padded_bias
from vitkernels.runtime.autograd import distinct, needs_grad, once_differentiable
from vitkernels.runtime.call import Call, run_all, sum_parts_call
from vitkernels.runtime.constants import DENSE, PADDED
from vitkernels.runtime.device import (
    EVERY_DEVICE,
    arch_of,
    autocast,
    check_interpretable,
    kernels_run_on,
    without_autocast,
)
from vitkernels.runtime.launch import Launch


def bias_attention_reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """`bias_attention` in plain PyTorch, computed in fp32 (fp64 for fp64 inputs) and returned in q.dtype."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return ((scores + bias.to(dtype)).softmax(-1) @ v.to(dtype)).to(q.dtype)


def bias_reference_gradients(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `bias_attention_reference` for q, k, v and bias, written out, in the dtype it computes in."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v, bias, grad = (x.to(dtype) for x in (q, k, v, bias, grad))
    with without_autocast(q):
        p = (q @ k.mT * scale + bias).softmax(-1)
        ds = softmax_gradient(p, grad @ v.mT)
        return ds @ k * scale, ds.mT @ q * scale, p.mT @ grad, ds.sum(0)


def bias_attention_work(
    B: int, H: int, N: int, M: int, D: int, itemsize: int = 2, bias_itemsize: int = 4, backward: bool = False
) -> tuple[int, int]:
    """Unavoidable (floating-point operations of the matrix products, bytes of device memory) of one pass.

    The backward pass has five products of the forward pass's two kinds (scores again, dP, dQ, dK, dV); it reads
    q, k, v, out, their gradient and the bias and writes four gradients.
    """
    tokens, scores = B * H * D * itemsize, B * H * N * M
    if backward:
        return 10 * scores * D, tokens * (4 * N + 4 * M) + 2 * H * N * M * bias_itemsize
    return 4 * scores * D, tokens * (2 * N + 2 * M) + H * N * M * bias_itemsize


torch.library.define(
    "vitkernels::bias_attention_fwd",
    "(Tensor q, Tensor k, Tensor v, Tensor bias, float scale, bool need_lse) -> (Tensor, Tensor)",
)
torch.library.define(
    "vitkernels::bias_attention_bwd",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor bias, Tensor out, Tensor lse, float scale, bool need_dbias)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("vitkernels::bias_attention_fwd")
def _fwd_fake(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, need_lse: bool) -> tuple[Tensor, Tensor]:
    lse = q.new_empty((*q.shape[:2], 2, q.shape[2]) if need_lse else (0,), dtype=torch.float32)
    return token_major(q, q.shape[2]), lse


@torch.library.register_fake("vitkernels::bias_attention_bwd")
def _bwd_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor, scale: float,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n, m = q.shape[2], k.shape[2]
    return token_major(q, n), token_major(k, m), token_major(v, m), bias.new_empty(bias.shape if need_dbias else (0,))


@torch.library.impl("vitkernels::bias_attention_fwd", EVERY_DEVICE)
def _fwd(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, need_lse: bool) -> tuple[Tensor, Tensor]:
    out, lse = _fwd_fake(q, k, v, bias, scale, need_lse)
    if not kernels_run_on(q) or not q.numel():  # nothing to launch for an empty batch
        with without_autocast(q):
            return out.copy_(bias_attention_reference(q, k, v, bias, scale)), lse.zero_()
    check_interpretable(q)
    q, k, v, bias = (last_contiguous(x) for x in (q, k, v, bias))
    run_all(bias_forward_calls(out, lse if need_lse else None, q, k, v, bias, scale, arch_of(q)))
    return out, lse


@torch.library.impl("vitkernels::bias_attention_bwd", EVERY_DEVICE)
def _bwd(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, out: Tensor, lse: Tensor, scale: float,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv, dbias = _bwd_fake(grad, q, k, v, bias, out, lse, scale, need_dbias)
    if not kernels_run_on(q) or not q.numel():  # nothing to launch for an empty batch
        grads = bias_reference_gradients(q, k, v, bias, grad, scale)
        for into, value in zip((dq, dk, dv, dbias) if need_dbias else (dq, dk, dv), grads, strict=False):
            into.copy_(value)
        return dq, dk, dv, dbias
    q, k, v, bias, grad = (last_contiguous(x) for x in (q, k, v, bias, grad))
    into = dbias if need_dbias else None
    run_all(bias_backward_calls(dq, dk, dv, into, q, k, v, bias, out, lse, grad, scale, arch_of(q)))
    return dq, dk, dv, dbias


def pays_to_pad(q: Tensor, n_keys: int) -> bool:
    """Whether kernels that read the bias padded save more than it takes to pad it: 16 images, and much to do for them.

    Not where the bias stands still in registers, and is read once; of fp16, which is padded in fp32, only where rows of
    the bias are not aligned.
    """
    B, H, N, _ = q.shape
    shorter = q.dtype == torch.bfloat16 or (q.dtype == torch.float16 and n_keys % 4 > 0)
    return shorter and not holds_bias(q, n_keys) and B >= 16 and B * H * N * n_keys >= 2**23


def bias_forward_calls(
    out: Tensor, lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, arch: int
) -> list[Call]:
    """`forward_calls`, of a padded bias where it pays."""
    if not pays_to_pad(q, k.shape[2]):
        return forward_calls(out, lse, q, k, v, bias, scale, arch, DENSE.value)
    padded, call = padded_bias(bias, q.dtype, "fwd_pad")
    return [call, *forward_calls(out, lse, q, k, v, padded, scale, arch, PADDED.value)]


def bias_backward_calls(
    dq: Tensor, dk: Tensor, dv: Tensor, dbias: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor,
    out: Tensor, lse: Tensor, grad: Tensor, scale: float, arch: int,
) -> list[Call]:  # fmt: skip
    """`backward_calls`, of a padded bias where it pays, and, where dbias is given, the sum of its partial gradients."""
    B, H, N, _ = q.shape
    first, expanded = [], DENSE.value
    if pays_to_pad(q, k.shape[2]):
        bias, call = padded_bias(bias, q.dtype, "bwd_pad")
        first, expanded = [call], PADDED.value
    parts = None
    if dbias is not None:
        parts = bias_parts(q, k.shape[2], arch, expanded=expanded)
    delta = lse.new_empty((B, H, N))
    calls = backward_calls(dq, dk, dv, parts, delta, q, k, v, bias, out, lse, grad, scale, arch, expanded=expanded)
    last = [] if dbias is None or parts is None else [sum_parts_call(dbias, parts, "bwd_sum_dbias")]
    return [*first, *calls, *last]


@register_flop_formula(torch.ops.vitkernels.bias_attention_fwd)
def _fwd_flops(q_shape: Shape, k_shape: Shape, *_: object, **__: object) -> int:
    return bias_attention_work(q_shape[0], q_shape[1], q_shape[2], k_shape[2], q_shape[3])[0]


@register_flop_formula(torch.ops.vitkernels.bias_attention_bwd)
def _bwd_flops(_: Shape, q_shape: Shape, k_shape: Shape, *__: object, **___: object) -> int:
    return bias_attention_work(q_shape[0], q_shape[1], q_shape[2], k_shape[2], q_shape[3], backward=True)[0]


class _BiasAttention(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return torch.ops.vitkernels.bias_attention_fwd(q, k, v, bias, scale, True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        q, k, v, bias, ctx.scale = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(q, k, v, bias, *output)

    @staticmethod
    @once_differentiable("bias_attention")
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        need_dbias = ctx.needs_input_grad[3]
        grads = torch.ops.vitkernels.bias_attention_bwd(grad, *ctx.saved_tensors, ctx.scale, need_dbias)
        return (*grads[:3], grads[3] if need_dbias else None, None)


def bias_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v without storing the N x M scores.

    A row whose keys are all masked is what softmax in fp32 makes of it, forward and backward, for every M: with -1e9 or
    the lowest finite number, which leave a score no digits, the mean of v; with -inf NaN, as are then dk and dv.

    A score's gradient is its weight times the difference of dP and of the row sum of dO x O, and O is rounded to
    q.dtype: where one key has nearly all the weight and the truth is nearly zero, half an eps of that sum is left.

    Tensors on the CPU are computed by `bias_attention_reference`, except under TRITON_INTERPRET=1, where Triton's
    interpreter runs the kernels. Under autocast q, k and v are cast to its dtype; the bias stays as it is.

    Args:
        q: [B, H, N, D]; k, v: [B, H, M, D]; fp16, bf16 or fp32 (on the CPU also fp64), any strides with a contiguous
            last dim (anything else is copied); N and M from 1 to 16384, D from 16 to 128.
        bias: [H, N, M], any floating dtype, added after scaling, may hold -inf; receives a gradient, summed over the
            batch in fp32. For q in bf16 kernels read it rounded to bf16 where that pays (16 images and more, more than
            64 keys): as documented at `relative_attention`.
        scale: default D ** -0.5.

    Returns: [B, H, N, D] in q.dtype, laid out as (B, N, H, D) so that merging heads is free.

    Raises: ValueError on shape, dtype or device mismatch.
    """
    q, k, v = autocast(q, k, v)
    check_qkv("bias_attention", q, k, v, bias=bias)
    check_shape("bias_attention", "bias", bias, (q.shape[1], q.shape[2], k.shape[2]), q)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if needs_grad(q, k, v, bias):
        return _BiasAttention.apply(*distinct(q, k, v, bias), scale)[0]
    return torch.ops.vitkernels.bias_attention_fwd(q, k, v, bias, scale, False)[0]


@dataclass(frozen=True)
class BiasAttentionCase:
    """One attention layer of a real model: B images, H heads, N queries, M keys, D channels per head."""

    name: str
    B: int
    H: int
    N: int
    M: int
    D: int


BIAS_ATTENTION_CASES = (
    BiasAttentionCase("coatnet_0-s3-224", 64, 12, 196, 196, 32),
    BiasAttentionCase("coatnet_0-s4-224", 64, 24, 49, 49, 32),
    BiasAttentionCase("coatnet_0-s3-384", 64, 12, 576, 576, 32),
    BiasAttentionCase("coatnet_0-s4-384", 64, 24, 144, 144, 32),
    BiasAttentionCase("swin_t-s1-224", 4096, 3, 49, 49, 32),
    BiasAttentionCase("maxvit_t-s1-224", 4096, 2, 49, 49, 32),
    BiasAttentionCase("beit_b-224", 64, 12, 197, 197, 64),
    BiasAttentionCase("convit_small-224", 64, 9, 196, 196, 48),  # gated_attention's shape, to compare with
    BiasAttentionCase("cmt_s-a-224", 64, 1, 3136, 49, 64),
    BiasAttentionCase("cmt_s-b-224", 64, 2, 784, 49, 64),
    BiasAttentionCase("cmt_s-c-224", 64, 4, 196, 49, 64),
    BiasAttentionCase("cmt_s-d-224", 64, 8, 49, 49, 64),
    BiasAttentionCase("cmt_s-a-384", 64, 1, 9216, 144, 64),
    BiasAttentionCase("cmt_s-b-384", 64, 2, 2304, 144, 64),
    BiasAttentionCase("cmt_s-c-384", 64, 4, 576, 144, 64),
    BiasAttentionCase("cmt_s-d-384", 64, 8, 144, 144, 64),
    BiasAttentionCase("cmt_ti-a-160", 64, 1, 1600, 25, 46),
    BiasAttentionCase("cmt_xs-a-192", 64, 1, 2304, 36, 52),
    BiasAttentionCase("cmt_b-a-256", 64, 1, 4096, 64, 76),
)


def audit_launches(arch: int) -> list[Launch]:
    """Every launch of the forward and backward pass of every case in bf16, for the audit."""
    launches = []
    for case in BIAS_ATTENTION_CASES:
        B, H, N, M, D = case.B, case.H, case.N, case.M, case.D
        q, k, v = (torch.empty((B, n, H, D), device="meta", dtype=torch.bfloat16).transpose(1, 2) for n in (N, M, M))
        bias, lse = torch.empty((H, N, M), device="meta"), torch.empty((B, H, 2, N), device="meta")
        fwd = bias_forward_calls(q, None, q, k, v, bias, D**-0.5, arch)
        bwd = bias_backward_calls(q, k, v, bias, q, k, v, bias, q, lse, q, D**-0.5, arch)
        launches += [call.audit("bias_attention", case.name, D, B * H * N * M) for call in (*fwd, *bwd)]
    return launches
