"""A convolution with its norm and activation, as functions of torch's own modules."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkernels.depthwise.conv import depthwise_conv2d, depthwise_conv2d_stats
from vitkernels.layers.folding import compute_dtype, evaluated_norm, folded_conv, uses_batch
from vitkernels.layers.norm_act import activate, affine_of_sums, norm_act

#: Of all four sides alike, or (before, after) of both axes; None is the convolution's own.
Padding = int | tuple[int, int] | None


def is_depthwise(conv: nn.Module) -> bool:
    """Whether `depthwise_conv2d` computes this convolution: one filter a channel, square, 2 to 9 wide, undilated."""
    if not isinstance(conv, nn.Conv2d) or not conv.groups == conv.in_channels == conv.out_channels > 1:
        return False
    k, stride, padding = conv.kernel_size, conv.stride, padding_of(conv)
    square = k[0] == k[1] and stride[0] == stride[1] and padding is not None
    return square and 2 <= k[0] <= 9 and padding is not None and padding < k[0] and _plain(conv)


def _plain(conv: nn.Conv2d) -> bool:
    return tuple(conv.dilation) == (1, 1) and conv.padding_mode == "zeros"


def padding_of(conv: nn.Conv2d) -> int | None:
    """The padding of all four sides, None where they differ."""
    if conv.padding == "valid":
        return 0
    if conv.padding == "same":
        return conv.kernel_size[0] // 2 if conv.kernel_size[0] % 2 and set(conv.stride) == {1} else None
    sides: set[Any] = set(conv.padding)
    return int(sides.pop()) if len(sides) == 1 else None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, padding: Padding) -> Tensor:
    around = conv.padding if padding is None else padding
    return F.conv2d(
        x, weight, None if bias is None else bias.to(weight.dtype), conv.stride, around, conv.dilation, conv.groups
    )


def _alike(x: Tensor, weight: Tensor, padding: Padding) -> tuple[Tensor, Tensor, int | None]:
    """x, filters and a padding of all four sides that give what a padding (before, after) of both axes does."""
    if not isinstance(padding, tuple):
        return x, weight, padding
    before, after = padding
    if before == after:
        return x, weight, after
    if after == before + 1 and weight.shape[-1] < 9:  # taps of zero are read in the place of a copy of x
        return x, F.pad(weight, (1, 0, 1, 0)), after
    return F.pad(x, (before, after, before, after)), weight, 0


def _depthwise_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Padding, activation: str
) -> Tensor:
    x, weight, padding = _alike(x, weight, padding)
    if activation in EPILOGUES:
        return depthwise_conv2d(x, weight, bias, stride, padding, activation=activation)
    return activate(depthwise_conv2d(x, weight, bias, stride, padding), activation, inplace=not torch.is_grad_enabled())


def conv_norm_act(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    activation: str = "none",
    *,
    padding: Padding = None,
    before: nn.BatchNorm2d | None = None,
) -> Tensor:
    """act(norm(conv(before(x)))); in evaluation the norms are folded into the convolution, act too where depthwise and
    in EPILOGUES.

    Args:
        x: [B, C, H, W].
        activation: "none", "relu", "relu6", "silu", "hardswish", "gelu" (exact) or "gelu_tanh".
        padding: default the convolution's own; a pair pads before and after both axes, as TensorFlow does.
        before: a norm in front of a convolution that is neither padded nor grouped.

    Returns: [B, C', H', W'] in x's dtype, or autocast's.
    """
    if before is not None and (uses_batch(before) or conv.groups > 1 or padding_of(conv) != 0):
        x, before = before(x), None
    depthwise = is_depthwise(conv)
    if isinstance(padding, tuple) and not depthwise:
        x, padding = F.pad(x, (*padding, *padding)), 0
    around = padding if padding is not None else padding_of(conv)
    if norm is None or uses_batch(norm):
        if norm is not None and depthwise:
            dtype = compute_dtype(x)
            x, weight, sides = _alike(x.to(dtype), conv.weight.to(dtype), around)
            y, sums = depthwise_conv2d_stats(x, weight, conv.bias, conv.stride[0], sides)
            return norm_act(y, norm, activation, "norm_act", sums)
        if before is not None:
            weight, bias = folded_conv(conv, before, None, compute_dtype(x))
            y = _convolve(x, weight, bias, conv, padding)
        elif depthwise:
            return _depthwise_act(x, conv.weight.to(x.dtype), conv.bias, conv.stride[0], around, activation)
        else:
            y = conv(x) if padding is None else _convolve(x, conv.weight, conv.bias, conv, padding)
        return activate(y, activation) if norm is None else norm_act(y, norm, activation, "norm_act")
    weight, bias = folded_conv(conv, before, norm, compute_dtype(x))
    if depthwise:
        return _depthwise_act(x.to(weight.dtype), weight, bias, conv.stride[0], around, activation)
    return activate(_convolve(x, weight, bias, conv, padding), activation, inplace=not torch.is_grad_enabled())


#: Activations that the depthwise kernel applies by itself.
EPILOGUES = ("none", "relu", "silu", "gelu", "gelu_tanh")


def conv_act_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, activation: str, residual: str = "none") -> Tensor:
    """norm(act(conv(x) [+ x])) [+ x]: the residual joins before the activation ("pre") or last ("post").

    Args and returns: as `conv_norm_act`; a residual needs an output of x's shape.
    """
    if not is_depthwise(conv) or activation not in EPILOGUES:
        y = conv(x)
        y = norm_act(y + x if residual == "pre" else y, norm, activation, "act_norm")
        return y + x if residual == "post" else y
    dtype, stride, around = compute_dtype(x), conv.stride[0], padding_of(conv)
    x = x.to(dtype)
    weight = conv.weight.to(dtype)
    if not uses_batch(norm):
        scale, shift = evaluated_norm(norm)
        return depthwise_conv2d(
            x, weight, conv.bias, stride, around, activation=activation, scale=scale, shift=shift, residual=residual
        )
    joins = "pre" if residual == "pre" else "none"
    y, sums = depthwise_conv2d_stats(x, weight, conv.bias, stride, around, activation=activation, residual=joins)
    y = norm_act(y, norm, "none", "norm_act", sums)
    return y + x if residual == "post" else y


def conv_act_norm_conv(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d,
    activation: str,
    residual: str,
    pointwise: nn.Conv2d,
    pointwise_norm: nn.BatchNorm2d,
) -> Tensor:
    """pointwise_norm(pointwise(norm(act(conv(x) [+ x])))) for a depthwise convolution and a 1 x 1 one after it.

    In evaluation both norms fold into the 1 x 1 weights. So does the first in training, with the sums that the
    depthwise kernel hands over: the normalised map exists nowhere.

    Args:
        residual: "none" or "pre".
    """
    dtype, around = compute_dtype(x), padding_of(conv)
    x = x.to(dtype)
    weight = conv.weight.to(dtype)
    if not uses_batch(norm) and not uses_batch(pointwise_norm):
        y = depthwise_conv2d(x, weight, conv.bias, conv.stride[0], around, activation=activation, residual=residual)
        folded, bias = folded_conv(pointwise, norm, pointwise_norm, dtype)
        return _convolve(y, folded, bias, pointwise, None)
    if not uses_batch(norm):
        y = conv_act_norm(x, conv, norm, activation, residual)
        return norm_act(pointwise(y), pointwise_norm, "none", "norm_act")
    y, sums = depthwise_conv2d_stats(
        x, weight, conv.bias, conv.stride[0], around, activation=activation, residual=residual
    )
    scale, shift = affine_of_sums(norm, sums, y.numel() // y.shape[1])
    wide = pointwise.weight.to(scale.dtype)
    bias = (wide * shift[:, None, None]).sum((1, 2, 3))
    if pointwise.bias is not None:
        bias = bias + pointwise.bias.to(bias.dtype)
    y = _convolve(y, (wide * scale[:, None, None]).to(y.dtype), bias, pointwise, None)
    return norm_act(y, pointwise_norm, "none", "norm_act")
