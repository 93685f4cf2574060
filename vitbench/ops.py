"""The operations that models call through a bundle, so that one set of modules serves every implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


def eager_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale + bias) v as separate PyTorch operators.

    Args:
        q: [B, H, N, D]; k, v: [B, H, M, D]; any floating dtype.
        bias: broadcastable to [B, H, N, M], added after scaling.
        scale: default D ** -0.5.

    Returns: [B, H, N, D] in q.dtype.
    """
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """`eager_attention` through torch's scaled_dot_product_attention; same arguments and result."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


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
    """One implementation of the operations that the models' blocks call."""

    name: str
    attention: Callable[..., Tensor]
    depthwise_conv2d: Callable[..., Tensor]


EAGER = Ops("eager", attention=eager_attention, depthwise_conv2d=eager_depthwise_conv2d)
SDPA = Ops("sdpa", attention=sdpa_attention, depthwise_conv2d=eager_depthwise_conv2d)


def ops_for(impl: str) -> Ops:
    """The bundle behind an implementation's name; "compile" compiles the eager one."""
    return {"eager": EAGER, "sdpa": SDPA, "compile": EAGER}[impl]


__all__ = ["EAGER", "SDPA", "Ops", "eager_attention", "eager_depthwise_conv2d", "ops_for", "sdpa_attention"]
