"""Eager forms of the operations that span several of a block's layers; fused.py has the others.

They take the layers themselves: what folds, and when, depends on whether a layer trains and on its running statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "relu": lambda x: F.relu(x, inplace=True),
    "silu": lambda x: F.silu(x, inplace=True),
}


def eager_conv_norm_act(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    activation: str = "none",
    *,
    padding: int | None = None,
    before: nn.BatchNorm2d | None = None,
) -> Tensor:
    """act(norm(conv(before(x)))).

    Args:
        x: [B, C, H, W].
        activation: "none", "gelu" (exact), "relu" or "silu".
        padding: default the convolution's own.
        before: a norm in front of an unpadded convolution.
    """
    if before is not None:
        x = before(x)
    if padding is None:
        x = conv(x)
    else:
        x = F.conv2d(x, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups)
    return _ACTIVATE[activation](norm(x))


def eager_conv_act_norm(
    x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, activation: str, residual: str = "none"
) -> Tensor:
    """norm(act(conv(x) [+ x])) [+ x]: the residual joins before the activation ("pre"), last ("post") or not."""
    y = conv(x)
    y = norm(_ACTIVATE[activation](x + y if residual == "pre" else y))
    return x + y if residual == "post" else y


def eager_conv_act_norm_conv(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    activation: str,
    residual: str,
    pointwise: nn.Conv2d,
    pointwise_norm: nn.BatchNorm2d,
) -> Tensor:
    """pointwise_norm(pointwise(norm(act(conv(x) [+ x])))), the second convolution 1 x 1."""
    return pointwise_norm(pointwise(eager_conv_act_norm(x, conv, norm, activation, residual)))


def eager_linears(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """layer(x) for each of the layers."""
    return tuple(layer(x) for layer in layers)


def eager_reduced_attention(
    x: Tensor, grid: tuple[int, int], bias: Tensor, norm: nn.LayerNorm, attention: nn.Module, drop_path: nn.Module
) -> Tensor:
    """x + drop_path(attention(norm(x), grid, bias)) over tokens [B, N, C] of a grid (h, w)."""
    return x + drop_path(attention(norm(x), grid, bias))


def eager_derive(
    owner: object, name: str, make: Callable[..., Any], *sources: Tensor, key: tuple[Any, ...] = ()
) -> Any:
    """make(*sources), which another bundle may keep where `owner` is frozen: make reads nothing else but what `key`
    tells."""
    return make(*sources)


__all__ = [
    "eager_conv_act_norm",
    "eager_conv_act_norm_conv",
    "eager_conv_norm_act",
    "eager_derive",
    "eager_linears",
    "eager_reduced_attention",
]
