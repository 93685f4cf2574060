"""gated_attention: ConViT's gated positional self-attention (d'Ascoli et al., arXiv:2103.10697).

P = (1 - g) softmax(q k^T * scale) + g softmax(positional),  g = sigmoid(gate),  output P v, for each head.

The positional softmax does not depend on the image: `_weights_kernel` computes W = g softmax(positional) once per step,
[H, N, N padded to 16] in q.dtype. The attention kernels then need one exp2 per score and image, and each tile of W
serves two images. P v = (1 - g) softmax(S) v + W v are two products with the same v, since the matrix unit has time to
spare and the fp32 lanes have none: mixing P first, for one product, takes 25.6 issue slots per score of ConViT-S on
sm_90 where this takes 16.5 (examples/kernels/gated_one_product.py has that design, and how to count both).
Dividing P by its row sums, as the released models do, changes nothing: both softmaxes sum to 1.

Gradients: with dP = dO v^T and delta = rowsum(softmax(S) * dP), dS = (1 - g) softmax(S) * (dP - delta), dv = P^T dO,
and over all images and rows dgate = g (1 - g) (sum(softmax(positional) * dP) - sum(delta)); the gradient of
softmax(positional) is g times the sum of dP over the images, through that softmax once. delta comes from the scores:
from the rounded output it has no digits as g nears 1. The passes over scores are those of bias_attention_bwd.py.

Cannot be avoided: q, k, v, out and positional (bytes), 4 B H N N D floating-point operations, B H N N exp2.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkernels._autograd import distinct, needs_grad, once_differentiable
from vitkernels._common import (
    LOG2E,
    Call,
    Shape,
    aligned,
    arch_of,
    autocast,
    cdiv,
    check_interpretable,
    check_qkv,
    check_shape,
    kernels_run_on,
    last_contiguous,
    last_tile,
    load_rows_or_last,
    padded_head_dim,
    reads_results_from_tensor_memory,
    rest_block,
    run_all,
    softmax_gradient,
    store_rows,
    stride_alignment,
    sum_rows,
    tall_tile,
    token_major,
)
from vitkernels._launch import Launch
from vitkernels.bias_attention import bias_attention_work
from vitkernels.gated_attention_bwd import gated_backward_calls, load_logits, load_weights, row_softmax


@triton.jit
def _weights_kernel(
    weights_ptr,  # [H, N, P] with P = N padded to 16
    logits_ptr,  # [H, N, N]
    gate_ptr,  # [H]
    N,
    P,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    tiles = tl.cdiv(N, BLOCK_N)
    rows = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(0) // tiles
    logits_ptr += tl.cast(head, tl.int64) * N * N
    weights_ptr += tl.cast(head, tl.int64) * N * P
    gate = tl.sigmoid(tl.load(gate_ptr + head).to(tl.float32))
    largest, total = row_softmax(logits_ptr, rows, N, BLOCK_M)
    for start in range(0, P, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        p = tl.math.exp2(load_logits(logits_ptr, rows, cols, N) - largest[:, None]) * (gate / total)[:, None]
        mask = (rows[:, None] < N) & (cols[None, :] < P)
        tl.store(weights_ptr + rows[:, None] * P + cols[None, :], p.to(weights_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _absorb(q, k_ptr, k_row, v_ptr, v_row, weights, cols, N, scale_log2, top, total, acc, positional,
            MASKED: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """One block of keys into the running softmax (top, total, acc) and into the positional product of one image."""
    BLOCK_D: tl.constexpr = q.shape[1]
    s = tl.dot(q, tl.trans(load_rows_or_last(k_ptr, k_row, cols, N, D, BLOCK_D)), input_precision="tf32x3")
    if MASKED:
        s = tl.where(cols[None, :] < N, s * scale_log2, -1.0e30)
        new_top = tl.maximum(top, tl.max(s, 1))
    else:  # the largest score before scaling is also the largest after it: scaling fuses with the subtraction
        new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
        s = s * scale_log2
    shrink = tl.math.exp2(top - new_top)[:, None]
    p = tl.math.exp2(s - new_top[:, None]).to(q.dtype)
    v = load_rows_or_last(v_ptr, v_row, cols, N, D, BLOCK_D)
    acc = tl.dot(p, v, acc * shrink, input_precision="tf32x3")
    positional = tl.dot(weights, v, positional, input_precision="tf32x3")
    return new_top, sum_rows(p, total * shrink), acc, positional


@triton.jit
def _finish(out_ptr, out_row, lse_ptr, lse_at, rows, N, keep, top, total, acc, positional, D: tl.constexpr):
    denominator = tl.max(total, 1)
    out = acc * (keep / denominator)[:, None] + positional
    store_rows(out_ptr, out_row, out, rows, N, D, acc.shape[1])
    if lse_ptr is not None:
        tl.store(lse_ptr + lse_at + rows, top + tl.math.log2(denominator / keep), mask=rows < N)


@triton.jit
def _tile(
    out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr, v_step,
    v_row, weights_ptr, keep, rows, N, P, scale_log2, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    REST: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head, of one or two images."""
    R: tl.constexpr = rows.shape[0]
    top_0 = tl.full([R], -3.0e38, tl.float32)
    total_0 = tl.zeros([R, 8], tl.float32)
    acc_0 = tl.zeros([R, BLOCK_D], tl.float32)
    positional_0 = tl.zeros([R, BLOCK_D], tl.float32)
    q_0 = load_rows_or_last(q_ptr, q_row, rows, N, D, BLOCK_D)
    if IMAGES > 1:
        top_1, total_1, acc_1, positional_1 = top_0, total_0, acc_0, positional_0
        q_1 = load_rows_or_last(q_ptr + q_step, q_row, rows, N, D, BLOCK_D)
    whole = N // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        cols = start + tl.arange(0, BLOCK_M)
        weights = tl.load(weights_ptr + tl.minimum(rows, N - 1)[:, None] * P + cols[None, :])
        top_0, total_0, acc_0, positional_0 = _absorb(
            q_0, k_ptr, k_row, v_ptr, v_row, weights, cols, N, scale_log2, top_0, total_0, acc_0, positional_0, False, D
        )
        if IMAGES > 1:
            top_1, total_1, acc_1, positional_1 = _absorb(
                q_1, k_ptr + k_step, k_row, v_ptr + v_step, v_row, weights, cols, N, scale_log2, top_1, total_1, acc_1,
                positional_1, False, D,
            )  # fmt: skip
    if REST > 0:
        cols = whole + tl.arange(0, REST)
        weights = load_weights(weights_ptr, N, P, rows, cols)
        top_0, total_0, acc_0, positional_0 = _absorb(
            q_0, k_ptr, k_row, v_ptr, v_row, weights, cols, N, scale_log2, top_0, total_0, acc_0, positional_0, True, D
        )
        if IMAGES > 1:
            top_1, total_1, acc_1, positional_1 = _absorb(
                q_1, k_ptr + k_step, k_row, v_ptr + v_step, v_row, weights, cols, N, scale_log2, top_1, total_1, acc_1,
                positional_1, True, D,
            )  # fmt: skip
    _finish(out_ptr, out_row, lse_ptr, lse_at, rows, N, keep, top_0, total_0, acc_0, positional_0, D)
    if IMAGES > 1:
        _finish(
            out_ptr + out_step, out_row, lse_ptr, lse_at + lse_step, rows, N, keep, top_1, total_1, acc_1,
            positional_1, D,
        )  # fmt: skip


@triton.jit
def _fwd_kernel(
    out_ptr,  # [B, H, N, D]
    lse_ptr,  # [B, H, N] log2(denominators / (1 - g)), or None
    q_ptr,  # [B, H, N, D]
    k_ptr,  # [B, H, N, D]
    v_ptr,  # [B, H, N, D]
    weights_ptr,  # [H, N, P]
    gate_ptr,  # [H]
    out_stride_b,
    out_stride_h,
    out_stride_n,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    B,
    H,
    N,
    P,
    scale_log2,  # not negative
    ALIGN: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    REST: tl.constexpr,  # keys of a last, shorter block; 0 without one
    LAST: tl.constexpr,  # queries of the last tile
    IMAGES: tl.constexpr,  # 1 or 2 images share each tile of weights
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(N, BLOCK_N)
    tile, h = pid % tiles, (pid // tiles) % H
    # The last group of images starts early enough to be whole: what two programs compute, both store alike.
    b64 = tl.minimum(pid // (tiles * H) * IMAGES, B - IMAGES).to(tl.int64)
    h64 = tl.cast(h, tl.int64)
    weights_ptr += h64 * N * P
    q_step, k_step, v_step = aligned(q_stride_b, ALIGN), aligned(k_stride_b, ALIGN), aligned(v_stride_b, ALIGN)
    q_ptr += h64 * aligned(q_stride_h, ALIGN) + b64 * q_step
    k_ptr += h64 * aligned(k_stride_h, ALIGN) + b64 * k_step
    v_ptr += h64 * aligned(v_stride_h, ALIGN) + b64 * v_step
    out_step = aligned(out_stride_b, ALIGN)
    out_ptr += h64 * aligned(out_stride_h, ALIGN) + b64 * out_step
    out_row = aligned(out_stride_n, ALIGN)
    q_row, k_row, v_row = aligned(q_stride_n, ALIGN), aligned(k_stride_n, ALIGN), aligned(v_stride_n, ALIGN)
    keep = tl.sigmoid(-tl.load(gate_ptr + h).to(tl.float32))  # 1 - g without cancellation
    lse_at, lse_step = (b64 * H + h) * N, H * N
    if LAST < BLOCK_N and tile == tiles - 1:
        _tile(
            out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, weights_ptr, keep, tile * BLOCK_N + tl.arange(0, LAST), N, P, scale_log2, D, BLOCK_D,
            BLOCK_M, REST, IMAGES,
        )  # fmt: skip
    else:
        _tile(
            out_ptr, out_step, out_row, lse_ptr, lse_at, lse_step, q_ptr, q_step, q_row, k_ptr, k_step, k_row, v_ptr,
            v_step, v_row, weights_ptr, keep, tile * BLOCK_N + tl.arange(0, BLOCK_N), N, P, scale_log2, D, BLOCK_D,
            BLOCK_M, REST, IMAGES,
        )  # fmt: skip


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
    with torch.autocast(q.device.type, enabled=False):
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


def gated_forward_calls(
    out: Tensor, lse: Tensor | None, weights: Tensor, q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor,
    scale: float, arch: int,
) -> list[Call]:  # fmt: skip
    """The launches that fill weights [H, N, N padded to 16] in q.dtype, out and, where given, lse [B, H, N] fp32."""
    B, H, N, D = q.shape
    P = weights.shape[2]
    full = q.element_size() == 4
    block_n = block_m = 32 if full else 64
    images, warps = 1, 4
    if tall_tile(q, arch):
        # Triton 3.6 spills with two images whose products are in tensor memory.
        block_n, images, warps = 128, 1 if reads_results_from_tensor_memory(arch) else min(B, 2), 8
    if scale < 0:  # the kernel takes the largest score before it scales
        q, scale = -q, -scale
    weights_args = {
        "weights_ptr": weights, "logits_ptr": positional, "gate_ptr": gate, "N": N, "P": P, "BLOCK_N": 16,
        "BLOCK_M": 128,
    }  # fmt: skip
    args = {
        "out_ptr": out, "lse_ptr": lse, "q_ptr": q, "k_ptr": k, "v_ptr": v, "weights_ptr": weights, "gate_ptr": gate,
        "out_stride_b": out.stride(0), "out_stride_h": out.stride(1), "out_stride_n": out.stride(2),
        "q_stride_b": q.stride(0), "q_stride_h": q.stride(1), "q_stride_n": q.stride(2),
        "k_stride_b": k.stride(0), "k_stride_h": k.stride(1), "k_stride_n": k.stride(2),
        "v_stride_b": v.stride(0), "v_stride_h": v.stride(1), "v_stride_n": v.stride(2),
        "B": B, "H": H, "N": N, "P": P, "scale_log2": scale * LOG2E,
        "ALIGN": stride_alignment(q, k, v, out), "D": D, "BLOCK_D": padded_head_dim(D), "BLOCK_N": block_n,
        "BLOCK_M": block_m, "REST": rest_block(N, block_m),
        "LAST": last_tile(N, block_n), "IMAGES": images,
    }  # fmt: skip
    return [
        Call(kernel=_weights_kernel, args=weights_args, grid=H * cdiv(N, 16), pass_name="fwd_weights"),
        Call(kernel=_fwd_kernel, args=args, grid=cdiv(N, block_n) * H * cdiv(B, images), pass_name="fwd",
             products=2, scores=B * H * N * N, num_warps=warps, num_stages=1),
    ]  # fmt: skip


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


@torch.library.impl("vitkernels::gated_attention_fwd", ("cpu", "cuda"))
def _fwd(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float, need_lse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    out, lse, weights = _fwd_fake(q, k, v, positional, gate, scale, need_lse)
    if not kernels_run_on(q) or not q.numel():  # nothing to launch for an empty batch
        with torch.autocast(q.device.type, enabled=False):
            out.copy_(gated_attention_reference(q, k, v, positional, gate, scale))
        return out, lse.zero_(), weights.zero_()
    check_interpretable(q)
    q, k, v, gate = (last_contiguous(x) for x in (q, k, v, gate))
    positional = positional.contiguous()
    run_all(gated_forward_calls(out, lse if need_lse else None, weights, q, k, v, positional, gate, scale, arch_of(q)))
    return out, lse, weights


@torch.library.impl("vitkernels::gated_attention_bwd", ("cpu", "cuda"))
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
