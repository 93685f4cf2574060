"""The operations that models call through a bundle, so that one set of modules serves every implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vitbench.errors import Unsupported
from vitbench.ops.blocks import (
    eager_conv_act_norm,
    eager_conv_act_norm_conv,
    eager_conv_norm_act,
    eager_derive,
    eager_linears,
    eager_reduced_attention,
)


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T * scale + bias) v as separate PyTorch operators.

    Args:
        q: [B, H, N, D]; k, v: [B, H, M, D]; any floating dtype.
        bias: broadcastable to [B, H, N, M], added after scaling.
        scale: default D ** -0.5.
        dropout: share of the probabilities that is zeroed, the others growing by 1 / (1 - dropout); a model in
            evaluation gives 0.

    Returns: [B, H, N, D] in q.dtype.
    """
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    probabilities = scores.softmax(dim=-1)
    return (F.dropout(probabilities, dropout) if dropout else probabilities) @ v


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """`eager_attention` through torch's scaled_dot_product_attention; same arguments and result.

    With dropout the CPU draws the same random numbers as the eager one; a fused CUDA kernel draws its own.
    """
    if bias is not None and bias.ndim == 3:
        bias = bias[None]  # cuDNN takes masks of 2 or 4 dimensions only
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """`eager_attention` through torch's compiled FlexAttention, which adds the bias inside the kernel.

    The first call with new shapes compiles for seconds.

    Raises: Unsupported on the CPU when a gradient is asked for, as FlexAttention has no backward pass there; where
        there is dropout, which it cannot apply to probabilities that it never has; and where torch refuses.
    """
    if dropout:
        raise Unsupported("FlexAttention drops no attention probabilities: train with eager or sdpa")
    if q.is_meta or isinstance(q, FakeTensor):
        return _FlexWithoutData.apply(q, k, v, bias)
    _refuse_training_on_cpu(q, k, v, bias)
    if bias is None:
        return _flex(q, k, v, None, scale)
    if bias.ndim < 4 or bias.shape[0] == 1:
        shared = bias.squeeze(0) if bias.ndim == 4 else bias
        shared = shared.expand(q.shape[1], q.shape[2], k.shape[2])

        def add_shared(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + shared[h, i, j]

        return _flex(q, k, v, add_shared, scale)
    own = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])

    def add_own(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + own[b, h, i, j]

    return _flex(q, k, v, add_own, scale)


def _flex(q: Tensor, k: Tensor, v: Tensor, score_mod: Callable[..., Tensor] | None, scale: float | None) -> Tensor:
    try:
        return _compiled_flex()(q, k, v, score_mod=score_mod, scale=scale)
    except NotImplementedError as error:  # FlexAttention's class for a device or shapes that it refuses
        raise Unsupported(f"FlexAttention: {error}") from error


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch._dynamo import config
    from torch.nn.attention import flex_attention as flex

    # One process measures many models, each with several shapes; a shape past the limit would be an error.
    config.recompile_limit = max(config.recompile_limit, 256)
    return torch.compile(flex.flex_attention, dynamic=False, fullgraph=True)


def _refuse_training_on_cpu(*tensors: Tensor | None) -> None:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad and not t.is_cuda for t in tensors):
        raise Unsupported("FlexAttention has no backward pass on the CPU: train with eager or sdpa there")


class _FlexWithoutData(torch.autograd.Function):
    """The tensors that FlexAttention allocates and keeps, where there is no data to compute with.

    Memory is predicted on such tensors, and the compiled kernel would read their data all the same.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        batch, heads, tokens, _ = q.shape
        out = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(1, 2)
        log_sums = q.new_empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, bias, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(None if saved is None else torch.empty_like(saved) for saved in ctx.saved_tensors[:4])


def relative_bias(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The bias of every pair of cells of a grid, looked up by their offset.

    Args:
        table: [(2h-1)(2w-1), H]; row (y_i - y_j + h - 1) * (2w - 1) + (x_i - x_j + w - 1) is that of query i, key j.
        grid: (h, w), cells in row-major order.

    Returns: [H, h*w, h*w] in table.dtype. Windows of the table are copied: no index, and a gradient without atomics.

    Raises: ValueError when the table does not have the rows of the grid.
    """
    h, w = grid
    if table.shape[0] != (2 * h - 1) * (2 * w - 1):
        raise ValueError(
            f"table of shape {list(table.shape)} does not fit a grid of {h} x {w}, "
            f"which has {(2 * h - 1) * (2 * w - 1)} offsets"
        )
    image = table.view(2 * h - 1, 2 * w - 1, -1)
    windows = image.unfold(0, h, 1).unfold(1, w, 1)  # [y_i, x_i, H, h-1-y_j, w-1-x_j]
    return windows.permute(2, 0, 1, 3, 4).flip(3, 4).reshape(-1, h * w, h * w).contiguous()


def eager_relative_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int], scale: float | None = None
) -> Tensor:
    """softmax(q k^T * scale + bias) v over the cells of a grid, with the bias that `relative_bias` looks up.

    Args:
        q, k, v: [B, H, N, D] with N = h * w, cells in row-major order; any floating dtype.
        table: [(2h-1)(2w-1), H].
        grid: (h, w).
        scale: default D ** -0.5.

    Returns: [B, H, N, D] in q.dtype.

    Raises: ValueError when table or tokens do not fit the grid.
    """
    return eager_attention(q, k, v, _bias_of(q, table, grid), scale)


def sdpa_relative_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int], scale: float | None = None
) -> Tensor:
    """`eager_relative_attention` through torch's scaled_dot_product_attention, the expanded bias as its mask."""
    return sdpa_attention(q, k, v, _bias_of(q, table, grid), scale)


def flex_relative_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int], scale: float | None = None
) -> Tensor:
    """`eager_relative_attention` through torch's compiled FlexAttention.

    The kernel reads the expanded bias: looking the table up inside it costs integer divisions for every score.

    Raises: ValueError as the eager one; Unsupported as `flex_attention`.
    """
    return flex_attention(q, k, v, _bias_of(q, table, grid), scale)


def _bias_of(q: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    if q.shape[-2] != grid[0] * grid[1]:
        raise ValueError(f"q of shape {list(q.shape)} does not have the tokens of a grid of {grid[0]} x {grid[1]}")
    return relative_bias(table, grid).to(q.dtype)


def eager_gated_attention(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float | None = None
) -> Tensor:
    """P v with P = (1 - sigmoid(gate)) softmax(q k^T * scale) + sigmoid(gate) softmax(positional).

    Both softmaxes have rows of sum one, so P needs no renormalisation.

    Args:
        q, k, v: [B, H, N, D]; any floating dtype.
        positional: [H, N, N] logits, the same for every image.
        gate: [H], before the sigmoid.
        scale: default D ** -0.5.

    Returns: [B, H, N, D] in q.dtype.
    """
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    return _mix(scores.softmax(dim=-1), positional.softmax(dim=-1), gate) @ v


def sdpa_gated_attention(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float | None = None
) -> Tensor:
    """`eager_gated_attention` with its content half through torch's scaled_dot_product_attention.

    A mixture of two softmaxes is not one softmax, so one call cannot compute it: the positional half is a second,
    plain product with v, and the two results are mixed instead of the two probabilities.
    """
    return _with_positional_half(sdpa_attention(q, k, v, scale=scale), v, positional, gate)


def flex_gated_attention(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float | None = None
) -> Tensor:
    """`eager_gated_attention` with its content half through torch's compiled FlexAttention.

    The positional half is a second, plain product, as in `sdpa_gated_attention` and for the same reason.

    Raises: Unsupported as `flex_attention`.
    """
    return _with_positional_half(flex_attention(q, k, v, scale=scale), v, positional, gate)


def _with_positional_half(content: Tensor, v: Tensor, positional: Tensor, gate: Tensor) -> Tensor:
    # One product per head over all images together: `@` would first copy the probabilities for each image.
    position = torch.einsum("hnm,bhmd->bhnd", positional.softmax(dim=-1).to(v.dtype), v)
    return _mix(content, position, gate)


def _mix(content: Tensor, position: Tensor, gate: Tensor) -> Tensor:
    share = gate.sigmoid()[:, None, None]
    return torch.lerp(content, position.to(content.dtype), share.to(content.dtype))


def eager_depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | None = None,
    *,
    residual: str = "none",
) -> Tensor:
    """Depthwise convolution, with the input added to its result when `residual` is "pre".

    Args:
        x: [B, C, H, W]; weight: [C, 1, k, k]; bias: [C].
        padding: default k // 2.
        residual: "none" or "pre"; "pre" needs an output of x's shape.

    Returns: [B, C, H', W'] in x's dtype and layout.
    """
    padding = weight.shape[-1] // 2 if padding is None else padding
    y = F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])
    return x + y if residual == "pre" else y


@dataclass(frozen=True)
class Ops:
    """One implementation of the operations that the models' blocks call; see blocks.py for those of whole layers."""

    name: str
    attention: Callable[..., Tensor]
    relative_attention: Callable[..., Tensor]
    gated_attention: Callable[..., Tensor]
    depthwise_conv2d: Callable[..., Tensor]
    conv_norm_act: Callable[..., Tensor] = eager_conv_norm_act
    conv_act_norm: Callable[..., Tensor] = eager_conv_act_norm
    conv_act_norm_conv: Callable[..., Tensor] = eager_conv_act_norm_conv
    linears: Callable[..., tuple[Tensor, ...]] = eager_linears
    reduced_attention: Callable[..., Tensor] = eager_reduced_attention
    derive: Callable[..., Any] = eager_derive


EAGER = Ops("eager", eager_attention, eager_relative_attention, eager_gated_attention, eager_depthwise_conv2d)
SDPA = Ops("sdpa", sdpa_attention, sdpa_relative_attention, sdpa_gated_attention, eager_depthwise_conv2d)
FLEX = Ops("flex", flex_attention, flex_relative_attention, flex_gated_attention, eager_depthwise_conv2d)


__all__ = [
    "EAGER",
    "FLEX",
    "SDPA",
    "Ops",
    "eager_attention",
    "eager_depthwise_conv2d",
    "eager_gated_attention",
    "eager_relative_attention",
    "flex_attention",
    "flex_gated_attention",
    "flex_relative_attention",
    "relative_bias",
    "sdpa_attention",
    "sdpa_gated_attention",
    "sdpa_relative_attention",
]
