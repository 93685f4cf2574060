"""gated_attention: ConViT's gated positional self-attention (d'Ascoli et al., arXiv:2103.10697).

P = (1 - g) softmax(q k^T * scale) + g softmax(positional),  g = sigmoid(gate),  output P v, for each head.

The positional softmax does not depend on the image: `_weights_kernel` computes W = g softmax(positional) once per step,
[H, N, N padded to 16] in q.dtype. The attention kernels then need one exp2 per score and image. P v =
(1 - g) softmax(S) v + W v are two products with the same v, since the matrix unit has time to spare, and keys can pass
by in blocks; mixing P first, for one product, needs all scores of a row at once, and registers leave room for 8 warps:
58 us at ConViT-S on an H200 as simulated, where this takes 34 (examples/kernels/gated_one_product.py has that design,
and how to time both).
Dividing P by its row sums, as the released models do, changes nothing: both softmaxes sum to 1.

Gradients: with dP = dO v^T and delta = rowsum(softmax(S) * dP), dS = (1 - g) softmax(S) * (dP - delta), dv = P^T dO,
and over all images and rows dgate = g (1 - g) (sum(softmax(positional) * dP) - sum(delta)); the gradient of
softmax(positional) is g times the sum of dP over the images, through that softmax once. delta is summed over the scores
again instead of taken from the output as in bias_attention: as g nears 1 the output is all but g softmax(positional) v,
and rounded it leaves no digits of the rest. The passes over scores are those of backward/.

Cannot be avoided: q, k, v, out and positional (bytes), 4 B H N N D floating-point operations, B H N N exp2.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkernels.attention.bias import bias_attention_work
from vitkernels.attention.checks import Shape, check_qkv, check_shape, last_contiguous, softmax_gradient, token_major
from vitkernels.attention.gated_backward import gated_backward_calls
from vitkernels.attention.gated_forward import gated_forward_calls
from vitkernels.runtime.autograd import distinct, needs_grad, once_differentiable
from vitkernels.runtime.call import run_all
from vitkernels.runtime.device import (
    EVERY_DEVICE,
    arch_of,
    autocast,
    check_interpretable,
    kernels_run_on,
    without_autocast,
)
from vitkernels.runtime.launch import Launch


def gated_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float | None = None
) -> Tensor:
    """`gated_attention` in plain PyTorch, computed in fp32 (fp64 for fp64 inputs) and returned in q.dtype."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    gate = gate.to(dtype)[:, None, None]
    p = (-gate).sigmoid() * scores.softmax(-1) + gate.sigmoid() * positional.to(dtype).softmax(-1)
    return (p @ v.to(dtype)).to(q.dtype)


def gated_reference_gradients(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `gated_attention_reference` for all five, written out, in the dtype it computes in."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v, positional, gate, grad = (x.to(dtype) for x in (q, k, v, positional, gate, grad))
    g, keep = gate.sigmoid()[:, None, None], (-gate).sigmoid()[:, None, None]
    with without_autocast(q):
        content, fixed = (q @ k.mT * scale).softmax(-1), positional.softmax(-1)
        dp = grad @ v.mT
        ds = softmax_gradient(content, keep * dp)
        dv = (keep * content + g * fixed).mT @ grad
        dgate = (g * keep).flatten() * (dp * (fixed - content)).sum((0, 2, 3))
        return ds @ k * scale, ds.mT @ q * scale, dv, softmax_gradient(fixed, (g * dp).sum(0)), dgate


def gated_attention_work(B: int, H: int, N: int, D: int, itemsize: int = 2, backward: bool = False) -> tuple[int, int]:
    """Unavoidable (floating-point operations of the matrix products, bytes of device memory) of one pass.

    One product P v is counted: the mixed P needs no more, however many products compute it.
    """
    return bias_attention_work(B, H, N, N, D, itemsize, 4, backward)


torch.library.define(
    "vitkernels::gated_attention_fwd",
    "(Tensor q, Tensor k, Tensor v, Tensor positional, Tensor gate, float scale, bool need_lse)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "vitkernels::gated_attention_bwd",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor positional, Tensor gate, Tensor out, Tensor lse,"
    " Tensor weights, float scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("vitkernels::gated_attention_fwd")
def _fwd_fake(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n = q.shape[2]
    lse = q.new_empty(q.shape[:3] if need_lse else (0,), dtype=torch.float32)
    return token_major(q, n), lse, q.new_empty((q.shape[1], n, (n + 15) // 16 * 16))


@torch.library.register_fake("vitkernels::gated_attention_bwd")
def _bwd_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, out: Tensor, lse: Tensor,
    weights: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n = q.shape[2]
    grads = token_major(q, n), token_major(k, n), token_major(v, n)
    return *grads, positional.new_empty(positional.shape), gate.new_empty(gate.shape)


@torch.library.impl("vitkernels::gated_attention_fwd", EVERY_DEVICE)
def _fwd(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    out, lse, weights = _fwd_fake(q, k, v, positional, gate, scale, need_lse)
    if not kernels_run_on(q) or not q.numel():  # nothing to launch for an empty batch
        with without_autocast(q):
            out.copy_(gated_attention_reference(q, k, v, positional, gate, scale))
        return out, lse.zero_(), weights.zero_()
    check_interpretable(q)
    q, k, v, gate = (last_contiguous(x) for x in (q, k, v, gate))
    positional = positional.contiguous()
    run_all(gated_forward_calls(out, lse if need_lse else None, weights, q, k, v, positional, gate, scale, arch_of(q)))
    return out, lse, weights


@torch.library.impl("vitkernels::gated_attention_bwd", EVERY_DEVICE)
def _bwd(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, out: Tensor, lse: Tensor,
    weights: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    into = _bwd_fake(grad, q, k, v, positional, gate, out, lse, weights, scale)
    if not kernels_run_on(q) or not q.numel():  # nothing to launch for an empty batch
        grads = gated_reference_gradients(q, k, v, positional, gate, grad, scale)
        for gradient, value in zip(into, grads, strict=True):
            gradient.copy_(value)
        return into
    q, k, v, gate, grad = (last_contiguous(x) for x in (q, k, v, gate, grad))
    positional = positional.contiguous()
    dq, dk, dv, dpositional, dgate = into
    run_all(
        gated_backward_calls(
            dq, dk, dv, dpositional, dgate, q, k, v, positional, gate, weights, out, lse, grad, scale, arch_of(q)
        )
    )
    return into


@register_flop_formula(torch.ops.vitkernels.gated_attention_fwd)
def _fwd_flops(q_shape: Shape, *_: object, **__: object) -> int:
    return gated_attention_work(*q_shape)[0]


@register_flop_formula(torch.ops.vitkernels.gated_attention_bwd)
def _bwd_flops(grad_shape: Shape, *_: object, **__: object) -> int:
    return gated_attention_work(*grad_shape, backward=True)[0]


class _GatedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.vitkernels.gated_attention_fwd(q, k, v, positional, gate, scale, True)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.scale = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    @once_differentiable("gated_attention")
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *torch.ops.vitkernels.gated_attention_bwd(grad, *ctx.saved_tensors, ctx.scale), None


def gated_attention(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float | None = None
) -> Tensor:
    """((1 - g) softmax(q k^T * scale) + g softmax(positional)) v with g = sigmoid(gate), storing no scores of images.

    Tensors on the CPU are computed by `gated_attention_reference`, except under TRITON_INTERPRET=1, where Triton's
    interpreter runs the kernels. Under autocast q, k and v are cast to its dtype; positional and gate stay as they are.

    A row of positional whose entries are all alike, also the lowest finite number, weighs all values alike; a row of
    -inf alone is NaN, as are then dv and the gradients of its head's gate and of itself.

    Args:
        q, k, v: [B, H, N, D]; fp16, bf16 or fp32 (on the CPU also fp64), any strides with a contiguous last dim
            (anything else is copied); N from 1 to 16384, D from 16 to 128.
        positional: [H, N, N] logits, any floating dtype; the same for all images; receives a gradient.
        gate: [H], any floating dtype, before the sigmoid; receives a gradient.
        scale: default D ** -0.5.

    Returns: [B, H, N, D] in q.dtype, laid out as (B, N, H, D) so that merging heads is free.

    Raises: ValueError on shape, dtype or device mismatch.
    """
    q, k, v = autocast(q, k, v)
    check_qkv("gated_attention", q, k, v, positional=positional, gate=gate)
    if k.shape[2] != q.shape[2]:
        raise ValueError(f"gated_attention: q and k must have equal shapes; got {tuple(q.shape)} and {tuple(k.shape)}")
    check_shape("gated_attention", "positional", positional, (q.shape[1], q.shape[2], q.shape[2]), q)
    check_shape("gated_attention", "gate", gate, (q.shape[1],), q)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if needs_grad(q, k, v, positional, gate):
        return _GatedAttention.apply(*distinct(q, k, v, positional, gate), scale)[0]
    return torch.ops.vitkernels.gated_attention_fwd(q, k, v, positional, gate, scale, False)[0]


@dataclass(frozen=True)
class GatedAttentionCase:
    """One layer of a real model: B images, H heads, N tokens, D channels per head."""

    name: str
    B: int
    H: int
    N: int
    D: int


GATED_ATTENTION_CASES = (
    GatedAttentionCase("convit_tiny-224", 64, 4, 196, 48),
    GatedAttentionCase("convit_small-224", 64, 9, 196, 48),
    GatedAttentionCase("convit_base-224", 64, 16, 196, 48),
    GatedAttentionCase("convit_base_plus-224", 64, 16, 196, 64),
)


def audit_launches(arch: int) -> list[Launch]:
    """Every launch of the forward and backward pass of every case in bf16, for the audit."""
    launches = []
    for case in GATED_ATTENTION_CASES:
        B, H, N, D = case.B, case.H, case.N, case.D
        q = token_major(torch.empty((B, H, N, D), device="meta", dtype=torch.bfloat16), N)
        positional, gate = torch.empty((H, N, N), device="meta"), torch.empty(H, device="meta")
        out, lse, weights = _fwd_fake(q, q, q, positional, gate, 1.0, True)
        fwd = gated_forward_calls(out, None, weights, q, q, q, positional, gate, D**-0.5, arch)
        bwd = gated_backward_calls(
            q, q, q, positional, gate, q, q, q, positional, gate, weights, out, lse, out, D**-0.5, arch
        )
        launches += [call.audit("gated_attention", case.name, D, B * H * N * N) for call in (*fwd, *bwd)]
    return launches
