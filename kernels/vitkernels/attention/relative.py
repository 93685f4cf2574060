"""relative_attention: softmax(q k^T * scale + relative position bias) v for tokens on a grid.

The bias of (query i, key j) is row (y_i - y_j + h - 1)(2w - 1) + (x_i - x_j + w - 1) of a table [(2h-1)(2w-1), H], as
in CoAtNet (Dai et al., arXiv:2106.04803), Swin (arXiv:2103.14030) and BEiT (arXiv:2106.08254).

Gathering table entries inside the attention loop costs more instructions than the attention. So a small kernel expands
the table once per step to a dense [H, N, N padded to 16] in q.dtype (fp32 for fp32), in units of log2, -inf in the
padding, which bias_attention's kernels read in 16-byte rows. Its dense gradient goes back to the table by the
inverse index: a program gathers, for one head, all pairs that are dy rows apart, in a fixed order.

Cannot be avoided: the bytes of q, k, v, the output and the table; 4 B H N N D floating-point operations; B H N N exp2.
"""

# Parameters of kernels are Triton values, which have no Python types.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkernels.attention.backward.plan import backward_calls, bias_parts
from vitkernels.attention.bias import bias_attention_reference, bias_attention_work, bias_reference_gradients
from vitkernels.attention.checks import Shape, check_qkv, check_shape, last_contiguous, token_major
from vitkernels.attention.forward.plan import forward_calls
from vitkernels.attention.relative_table import expand_call, table_gradient_kernel
from vitkernels.runtime.autograd import distinct, needs_grad, once_differentiable
from vitkernels.runtime.call import Call, cdiv, run_all, sum_parts_call
from vitkernels.runtime.constants import LOG2E, LOWEST_EXPANDED, OUTSIDE, TABLE
from vitkernels.runtime.device import (
    EVERY_DEVICE,
    arch_of,
    autocast,
    check_interpretable,
    kernels_run_on,
    without_autocast,
)
from vitkernels.runtime.launch import Launch


def relative_index(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Rows of the table for every (query, key), [N, N] int64, for row-major tokens on a grid (h, w)."""
    h, w = grid
    y, x = torch.arange(h * w, device=device) // w, torch.arange(h * w, device=device) % w
    return (y[:, None] - y + h - 1) * (2 * w - 1) + (x[:, None] - x + w - 1)


def relative_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int], scale: float | None = None
) -> Tensor:
    """`relative_attention` in plain PyTorch, computed in fp32 (fp64 for fp64 inputs) and returned in q.dtype."""
    bias = table.to(torch.promote_types(q.dtype, torch.float32))[relative_index(grid, table.device)].permute(2, 0, 1)
    return bias_attention_reference(q, k, v, bias, scale)


def relative_reference_gradients(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grad: Tensor, grid: tuple[int, int], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `relative_attention_reference` for q, k, v and table, written out, in the dtype it computes in."""
    index = relative_index(grid, table.device)
    dq, dk, dv, dbias = bias_reference_gradients(q, k, v, table[index].permute(2, 0, 1), grad, scale)
    dtable = dbias.new_zeros(table.shape).index_add_(0, index.flatten(), dbias.flatten(1).mT)
    return dq, dk, dv, dtable


def relative_attention_work(
    B: int, H: int, grid: tuple[int, int], D: int, itemsize: int = 2, backward: bool = False
) -> tuple[int, int]:
    """Unavoidable (floating-point operations of the matrix products, bytes of device memory) of one pass."""
    N = grid[0] * grid[1]
    flops, _ = bias_attention_work(B, H, N, N, D, backward=backward)
    table = (2 * grid[0] - 1) * (2 * grid[1] - 1) * H * 4
    return flops, (8 if backward else 4) * B * H * N * D * itemsize + (2 if backward else 1) * table


def relative_backward_calls(
    dq: Tensor, dk: Tensor, dv: Tensor, dtable: Tensor | None, q: Tensor, k: Tensor, v: Tensor, expanded: Tensor,
    out: Tensor, lse: Tensor, grad: Tensor, scale: float, grid: tuple[int, int],
    arch: int,
) -> list[Call]:  # fmt: skip
    """The launches that fill dq, dk, dv (token-major) and, where given, dtable."""
    _, H, N, _ = q.shape
    parts = None if dtable is None else bias_parts(q, k.shape[2], arch, expanded=TABLE.value)
    delta = lse.new_empty(lse.shape)  # empty_like imports sympy on the meta device, a second of every audit
    calls = backward_calls(
        dq, dk, dv, parts, delta, q, k, v, expanded, out, lse, grad, scale, arch, expanded=TABLE.value
    )
    if dtable is None or parts is None:
        return calls
    if parts.shape[0] > 2 or parts.dtype != torch.float32:  # two are added up while they are gathered
        dbias = lse.new_empty((1, H, N, N))
        calls.append(sum_parts_call(dbias, parts, "bwd_sum_dbias"))
        parts = dbias
    block_x = min(32, triton.next_power_of_2(grid[1]))
    args = {
        "dtable_ptr": dtable, "dbias_ptr": parts, "parts": parts.shape[0], "H": H, "grid_h": grid[0],
        "grid_w": grid[1], "BLOCK_DX": 32, "BLOCK_X": block_x,
    }  # fmt: skip
    programs = (2 * grid[0] - 1) * H * cdiv(2 * grid[1] - 1, 32)
    return [*calls, Call(kernel=table_gradient_kernel, args=args, grid=programs, pass_name="bwd_table", num_warps=1)]


torch.library.define(
    "vitkernels::expand_relative_bias", "(Tensor table, int grid_h, int grid_w, ScalarType dtype) -> Tensor"
)
torch.library.define(
    "vitkernels::relative_attention_fwd",
    "(Tensor q, Tensor k, Tensor v, Tensor expanded, float scale, bool need_lse) -> (Tensor, Tensor)",
)
torch.library.define(
    "vitkernels::relative_attention_bwd",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor table, Tensor expanded, Tensor out, Tensor lse, float scale,"
    " int grid_h, int grid_w, bool need_dtable) -> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("vitkernels::expand_relative_bias")
def _expand_fake(table: Tensor, grid_h: int, grid_w: int, dtype: torch.dtype) -> Tensor:
    n = grid_h * grid_w
    return table.new_empty((table.shape[1], n, (n + 15) // 16 * 16), dtype=dtype)


@torch.library.impl("vitkernels::expand_relative_bias", EVERY_DEVICE)
def _expand(table: Tensor, grid_h: int, grid_w: int, dtype: torch.dtype) -> Tensor:
    out = _expand_fake(table, grid_h, grid_w, dtype)
    if kernels_run_on(table):
        run_all([expand_call(out, last_contiguous(table), (grid_h, grid_w))])
        return out
    n = grid_h * grid_w
    bias = table.to(dtype)[relative_index((grid_h, grid_w), table.device)].permute(2, 0, 1)
    out[..., n:] = OUTSIDE.value
    out[..., :n] = bias * LOG2E.value
    out.masked_fill_((out > OUTSIDE.value) & (out < LOWEST_EXPANDED.value), LOWEST_EXPANDED.value)
    return out


@torch.library.register_fake("vitkernels::relative_attention_fwd")
def _fwd_fake(q: Tensor, k: Tensor, v: Tensor, expanded: Tensor, scale: float, need_lse: bool) -> tuple[Tensor, Tensor]:
    return token_major(q, q.shape[2]), q.new_empty(q.shape[:3] if need_lse else (0,), dtype=torch.float32)


@torch.library.impl("vitkernels::relative_attention_fwd", EVERY_DEVICE)
def _fwd(q: Tensor, k: Tensor, v: Tensor, expanded: Tensor, scale: float, need_lse: bool) -> tuple[Tensor, Tensor]:
    out, lse = _fwd_fake(q, k, v, expanded, scale, need_lse)
    if not kernels_run_on(q) or not q.numel():  # nothing to launch for an empty batch
        with without_autocast(q):
            bias = expanded[..., : q.shape[2]].to(torch.promote_types(q.dtype, torch.float32)) / LOG2E.value
            return out.copy_(bias_attention_reference(q, k, v, bias, scale)), lse.zero_()
    check_interpretable(q)
    q, k, v = (last_contiguous(x) for x in (q, k, v))
    run_all(forward_calls(out, lse if need_lse else None, q, k, v, expanded, scale, arch_of(q), TABLE.value))
    return out, lse


@torch.library.register_fake("vitkernels::relative_attention_bwd")
def _bwd_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, table: Tensor, expanded: Tensor, out: Tensor, lse: Tensor,
    scale: float, grid_h: int, grid_w: int, need_dtable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    n = q.shape[2]
    dtable = table.new_empty(table.shape if need_dtable else (0,))
    return token_major(q, n), token_major(k, n), token_major(v, n), dtable


@torch.library.impl("vitkernels::relative_attention_bwd", EVERY_DEVICE)
def _bwd(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, table: Tensor, expanded: Tensor, out: Tensor, lse: Tensor,
    scale: float, grid_h: int, grid_w: int, need_dtable: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    grid = (grid_h, grid_w)
    dq, dk, dv, dtable = _bwd_fake(grad, q, k, v, table, expanded, out, lse, scale, grid_h, grid_w, need_dtable)
    if not kernels_run_on(q) or not q.numel():  # nothing to launch for an empty batch
        grads = relative_reference_gradients(q, k, v, table, grad, grid, scale)
        for into, x in zip((dq, dk, dv, dtable) if need_dtable else (dq, dk, dv), grads, strict=False):
            into.copy_(x)
        return dq, dk, dv, dtable
    q, k, v, grad = (last_contiguous(x) for x in (q, k, v, grad))
    into = dtable if need_dtable else None
    run_all(relative_backward_calls(dq, dk, dv, into, q, k, v, expanded, out, lse, grad, scale, grid, arch_of(q)))
    return dq, dk, dv, dtable


@register_flop_formula(torch.ops.vitkernels.expand_relative_bias)
def _expand_flops(*_: object, **__: object) -> int:
    return 0


@register_flop_formula(torch.ops.vitkernels.relative_attention_fwd)
def _fwd_flops(q_shape: Shape, *_: object, **__: object) -> int:
    B, H, N, D = q_shape
    return bias_attention_work(B, H, N, N, D)[0]


@register_flop_formula(torch.ops.vitkernels.relative_attention_bwd)
def _bwd_flops(grad_shape: Shape, *_: object, **__: object) -> int:
    B, H, N, D = grad_shape
    return bias_attention_work(B, H, N, N, D, backward=True)[0]


class _RelativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid_h: int, grid_w: int, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        expanded = expand_relative_bias(table, (grid_h, grid_w), q.dtype)
        return *torch.ops.vitkernels.relative_attention_fwd(q, k, v, expanded, scale, True), expanded

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        q, k, v, table, ctx.grid_h, ctx.grid_w, ctx.scale = inputs
        out, lse, expanded = output
        ctx.mark_non_differentiable(lse, expanded)
        ctx.save_for_backward(q, k, v, table, expanded, out, lse)

    @staticmethod
    @once_differentiable("relative_attention")
    def backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        need_dtable = ctx.needs_input_grad[3]
        dq, dk, dv, dtable = torch.ops.vitkernels.relative_attention_bwd(
            grad, *ctx.saved_tensors, ctx.scale, ctx.grid_h, ctx.grid_w, need_dtable
        )
        return dq, dk, dv, dtable if need_dtable else None, None, None, None


def expand_relative_bias(table: Tensor, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The table as the dense bias that the kernels read; keep it where the table does not change between calls.

    Args:
        table: [(2h-1)(2w-1), H], any floating dtype.
        grid: (h, w).
        dtype: of the q, k and v that it will serve.

    Returns: [H, N, N padded to a multiple of 16] in dtype (at least fp32 on the CPU), in units of log2. No gradient.
    """
    dtype = dtype if kernels_run_on(table) else torch.promote_types(dtype, torch.float32)
    return torch.ops.vitkernels.expand_relative_bias(table.detach(), *grid, dtype)


def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    grid: tuple[int, int],
    scale: float | None = None,
    *,
    expanded: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T * scale + bias) v with the bias of (query i, key j) looked up by their offset on the grid.

    Tensors on the CPU are computed by `relative_attention_reference`, except under TRITON_INTERPRET=1, where Triton's
    interpreter runs the kernels. Under autocast q, k and v are cast to its dtype; the table stays as it is.

    Args:
        q, k, v: [B, H, N, D] with N = h w row-major tokens; fp16, bf16 or fp32 (on the CPU also fp64), any strides
            with a contiguous last dim (anything else is copied); N from 1 to 16384, D from 16 to 128.
        table: [(2h-1)(2w-1), H], any floating dtype; row (y_i - y_j + h - 1)(2w - 1) + (x_i - x_j + w - 1) is added
            after scaling; receives a gradient, summed over the batch in fp32. The kernels read it rounded to q.dtype:
            at 14 x 14 tokens and entries of standard deviation 1 that moves the output by 0.3 % in bf16 and 0.04 % in
            fp16 (root mean square), twice what rounding the output itself does. Finite entries below -45403 count as
            that (-65504 in units of log2, where fp16 ends), so that a row of nothing else is softmax without a bias,
            forward and backward; -inf masks, and a row of it alone is NaN, as are then dk and dv.
        grid: (h, w).
        scale: default D ** -0.5.
        expanded: `expand_relative_bias(table, grid, q.dtype)` from an earlier call, for inference: saves making it
            (a copy of it that is not contiguous is copied once more).

    Returns: [B, H, N, D] in q.dtype, laid out as (B, N, H, D) so that merging heads is free.

    Raises: ValueError on shape, dtype or device mismatch, or if `expanded` is given where gradients are needed.
    """
    q, k, v = autocast(q, k, v)
    check_qkv("relative_attention", q, k, v, table=table)
    h, w = (int(side) for side in grid) if isinstance(grid, Sequence) and len(grid) == 2 else (0, 0)
    if min(h, w) < 1:
        raise ValueError(f"relative_attention: grid must be (h, w) with h * w = {q.shape[2]} tokens; got {grid}")
    if h * w != q.shape[2] or k.shape[2] != q.shape[2]:
        raise ValueError(
            f"relative_attention: grid {h}x{w} needs q, k, v of {h * w} tokens; "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}"
        )
    check_shape("relative_attention", "table", table, ((2 * h - 1) * (2 * w - 1), q.shape[1]), q)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if needs_grad(q, k, v, table):
        if expanded is not None:
            raise ValueError("relative_attention: expanded is for inference; for gradients pass the table alone")
        return _RelativeAttention.apply(*distinct(q, k, v, table), h, w, scale)[0]
    if expanded is None:
        expanded = expand_relative_bias(table, (h, w), q.dtype)
    n = h * w
    check_shape("relative_attention", "expanded", expanded, (q.shape[1], n, cdiv(n, 16) * 16), q)
    dtype = q.dtype if kernels_run_on(q) else torch.promote_types(q.dtype, torch.float32)
    if (expanded.dtype, expanded.device) != (dtype, q.device):
        raise ValueError(
            f"relative_attention: expanded must be {dtype} on {q.device}, as expand_relative_bias makes it for q of "
            f"{q.dtype}; got {expanded.dtype} on {expanded.device}"
        )
    expanded = expanded.contiguous()
    return torch.ops.vitkernels.relative_attention_fwd(q, k, v, expanded, scale, False)[0]


@dataclass(frozen=True)
class RelativeAttentionCase:
    """One layer of a real model: B images (or windows), H heads, a token grid, D channels per head."""

    name: str
    B: int
    H: int
    grid: tuple[int, int]
    D: int


RELATIVE_ATTENTION_CASES = (
    RelativeAttentionCase("coatnet_0-s3-224", 64, 12, (14, 14), 32),
    RelativeAttentionCase("coatnet_0-s4-224", 64, 24, (7, 7), 32),
    RelativeAttentionCase("coatnet_0-s3-384", 64, 12, (24, 24), 32),
    RelativeAttentionCase("coatnet_0-s4-384", 64, 24, (12, 12), 32),
    RelativeAttentionCase("coatnet_2-s3-512", 64, 16, (32, 32), 32),
    RelativeAttentionCase("swin_t-s1-224", 4096, 3, (7, 7), 32),
    RelativeAttentionCase("maxvit_t-s1-224", 4096, 2, (7, 7), 32),
)


def audit_launches(arch: int) -> list[Launch]:
    """Every launch of the forward and backward pass of every case in bf16, for the audit."""
    launches = []
    for case in RELATIVE_ATTENTION_CASES:
        B, H, D, N = case.B, case.H, case.D, case.grid[0] * case.grid[1]
        q = torch.empty((B, N, 3, H, D), device="meta", dtype=torch.bfloat16).permute(2, 0, 3, 1, 4)[0]
        out = token_major(q, N)
        table = torch.empty(((2 * case.grid[0] - 1) * (2 * case.grid[1] - 1), H), device="meta")
        expanded, lse = _expand_fake(table, *case.grid, q.dtype), torch.empty((B, H, N), device="meta")
        fwd = [expand_call(expanded, table, case.grid)]
        fwd += forward_calls(out, None, q, q, q, expanded, D**-0.5, arch, TABLE.value)
        bwd = relative_backward_calls(out, out, out, table, q, q, q, expanded, out, lse, out, D**-0.5, case.grid, arch)
        launches += [call.audit("relative_attention", case.name, D, B * H * N * N) for call in (*fwd, *bwd)]
    return launches
