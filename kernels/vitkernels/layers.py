"""Layers as functions of torch's own modules, for models that keep their modules and replace what runs.

y = act(norm(conv(x))) and y = norm(act(conv(x) [+ x])) [+ x] over maps [B, C, h, w], packed linear layers, and CMT's
attention sub-block. In evaluation batch norms fold into weights or epilogues; what is folded is computed once and again
when a parameter may have changed (`_derived`), and is no part of any state_dict. In training batch norms use the
statistics of the batch and update the running ones as torch does; the map between norm and activation is computed again
in the backward pass instead of being kept, and a depthwise convolution hands the norm its sums.

Batch norm: Ioffe and Szegedy, arXiv:1502.03167; keeping one map instead of two: Rota Bulo et al., arXiv:1712.02616.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkernels._common import arch_of, autocast_dtype, kernels_run_on
from vitkernels._derived import derived, wants_grad
from vitkernels._norm_act import activate, affine_of_sums, norm_act
from vitkernels._reduced_ops import block_fits, block_op, expand_block_bias
from vitkernels.depthwise_conv import depthwise_conv2d, depthwise_conv2d_stats


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


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products of x run in: autocast's where it is on."""
    return autocast_dtype(x) or x.dtype


def _uses_batch(norm: nn.BatchNorm2d) -> bool:
    return norm.training or norm.running_mean is None


def _affine(state: tuple[Tensor | None, ...], eps: float) -> tuple[Tensor, Tensor]:
    """scale and shift [C], at least fp32, of an evaluated batch norm given its `_state`."""
    weight, bias, mean, variance = state
    assert mean is not None
    assert variance is not None
    acc = torch.promote_types(variance.dtype, torch.float32)
    scale = (variance.to(acc) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(acc)
    shift = -mean.to(acc) * scale
    return scale, shift if bias is None else shift + bias.to(acc)


def _state(norm: nn.BatchNorm2d | None) -> tuple[Tensor | None, ...]:
    return (None,) * 4 if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)


def _batches(*norms: nn.BatchNorm2d | None) -> tuple[Tensor | None, ...]:
    """What counts the batches that running statistics have seen: torch's own updates of those are not counted."""
    return tuple(None if norm is None else norm.num_batches_tracked for norm in norms)


def evaluated_norm(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The scale and shift [C], fp32, that an evaluated batch norm is."""

    def make(*state: Tensor | None) -> tuple[Tensor, Tensor]:
        return _affine(state, norm.eps)

    found: tuple[Tensor, Tensor] = derived(norm, "affine", make, *_state(norm), key=(norm.eps,), watch=_batches(norm))
    return found


def folded_conv(
    conv: nn.Conv2d,
    before: nn.BatchNorm2d | None,
    after: nn.BatchNorm2d | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Weight, in dtype, and bias, at least fp32, of after(conv(before(x))) with evaluated norms.

    before needs a convolution without padding: its shift would differ at the border.
    """
    eps = (None if before is None else before.eps, None if after is None else after.eps)

    def make(weight: Tensor, bias: Tensor | None, *norms: Tensor | None) -> tuple[Tensor, Tensor | None]:
        acc = torch.promote_types(weight.dtype, torch.float32)
        wide, offset = weight.to(acc), None if bias is None else bias.to(acc)
        if before is not None:
            scale, shift = _affine(norms[:4], before.eps)
            moved = (wide * shift[:, None, None]).sum((1, 2, 3))
            offset = moved if offset is None else offset + moved
            wide = wide * scale[:, None, None]
        if after is not None:
            scale, shift = _affine(norms[4:], after.eps)
            wide = wide * scale[:, None, None, None]
            offset = shift if offset is None else offset * scale + shift
        return wide.to(dtype), offset

    sources = (conv.weight, conv.bias, *_state(before), *_state(after))
    found: tuple[Tensor, Tensor | None] = derived(
        conv, "folded", make, *sources, key=(dtype, *eps), watch=_batches(before, after)
    )
    return found


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, padding: int | None) -> Tensor:
    around = conv.padding if padding is None else padding
    return F.conv2d(
        x, weight, None if bias is None else bias.to(weight.dtype), conv.stride, around, conv.dilation, conv.groups
    )


def _depthwise_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int | None, activation: str
) -> Tensor:
    if activation in EPILOGUES:
        return depthwise_conv2d(x, weight, bias, stride, padding, activation=activation)
    return activate(depthwise_conv2d(x, weight, bias, stride, padding), activation, inplace=not torch.is_grad_enabled())


def conv_norm_act(
    x: Tensor,
    conv: nn.Conv2d,
    norm: nn.BatchNorm2d | None,
    activation: str = "none",
    *,
    padding: int | None = None,
    before: nn.BatchNorm2d | None = None,
) -> Tensor:
    """act(norm(conv(before(x)))); in evaluation the norms are folded into the convolution, act too where depthwise and
    in EPILOGUES.

    Args:
        x: [B, C, H, W].
        activation: "none", "relu", "relu6", "silu", "hardswish", "gelu" (exact) or "gelu_tanh".
        padding: default the convolution's own.
        before: a norm in front of a convolution that is neither padded nor grouped.

    Returns: [B, C', H', W'] in x's dtype, or autocast's.
    """
    if before is not None and (_uses_batch(before) or conv.groups > 1 or padding_of(conv) != 0):
        x, before = before(x), None
    depthwise = is_depthwise(conv)
    around = padding if padding is not None else padding_of(conv)
    if norm is None or _uses_batch(norm):
        if norm is not None and depthwise:
            dtype = compute_dtype(x)
            y, sums = depthwise_conv2d_stats(x.to(dtype), conv.weight.to(dtype), conv.bias, conv.stride[0], around)
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
    if not _uses_batch(norm):
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
    if not _uses_batch(norm) and not _uses_batch(pointwise_norm):
        y = depthwise_conv2d(x, weight, conv.bias, conv.stride[0], around, activation=activation, residual=residual)
        folded, bias = folded_conv(pointwise, norm, pointwise_norm, dtype)
        return _convolve(y, folded, bias, pointwise, None)
    if not _uses_batch(norm):
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


def packed_linear(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """layer(x) for each of the layers; without gradients of weights as one matrix product, each result a part of it."""
    if wants_grad(*(p for layer in layers for p in layer.parameters())):
        return tuple(layer(x) for layer in layers)
    count, dtype = len(layers), compute_dtype(x)

    def make(*sources: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight = torch.cat([w.to(dtype) for w in sources[:count] if w is not None])
        if all(b is None for b in sources[count:]):
            return weight, None
        parts = zip(layers, sources[count:], strict=True)
        return weight, torch.cat([weight.new_zeros(n.out_features) if b is None else b.to(dtype) for n, b in parts])

    sources = (*(layer.weight for layer in layers), *(layer.bias for layer in layers))
    weight, bias = derived(layers[0], "packed", make, *sources, key=(dtype, *map(id, layers)))
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)


def reduced_block_serves(x: Tensor, bias: Tensor, heads: int, modules: tuple[nn.Module | None, ...]) -> bool:
    """Whether `reduced_block` computes this: evaluation without gradients, at shapes whose weights fit on chip."""
    parameters = [p for m in modules if m is not None for p in m.parameters()]
    if any(m is not None and m.training for m in modules):
        return False
    if wants_grad(x, bias, *parameters):
        return False
    return block_fits(x.shape[2], heads, bias.shape[2], compute_dtype(x), arch_of(x))


def reduced_block(
    x: Tensor,
    bias: Tensor,
    grid: tuple[int, int],
    heads: int,
    norm: nn.LayerNorm,
    q: nn.Linear,
    k: nn.Linear,
    v: nn.Linear,
    proj: nn.Linear,
    reduction: tuple[nn.Conv2d, nn.BatchNorm2d] | None,
) -> Tensor:
    """x + proj(attention(q(norm(x)), k(r), v(r)) with bias), r the reduced norm(x), in two kernels: no [N, C] between.

    Args:
        x: [B, N, C] tokens by rows of grid (h, w); bias: [heads, N, M].
        reduction: the k x k stride k depthwise convolution and its batch norm, or None.
    """
    dtype = compute_dtype(x)

    def cast(module: nn.Module, name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.dtype == dtype:
            return tensor
        made: Tensor = derived(module, f"cast {name}", lambda t: t.to(dtype), tensor, key=(dtype,))
        return made

    linear: list[Any] = []
    for layer in (q, k, v, proj):
        linear += [cast(layer, "weight", layer.weight), layer.bias]
    taps, scale, shift = None, None, None
    if reduction is not None:
        conv, batch_norm = reduction
        taps = cast(conv, "weight", conv.weight)

        def make(offset: Tensor | None, *state: Tensor | None) -> tuple[Tensor, Tensor]:
            scale, shift = _affine(state, batch_norm.eps)
            return scale, shift if offset is None else shift + offset.to(scale.dtype) * scale

        scale, shift = derived(
            conv, "reduction", make, conv.bias, *_state(batch_norm), key=(batch_norm.eps,), watch=_batches(batch_norm)
        )
    expanded = kernels_run_on(x)
    if expanded:
        bias = derived(bias, "block", lambda t: expand_block_bias(t, dtype), bias, key=(dtype,))
    out: Tensor = block_op(
        x.to(dtype), bias, norm.weight, norm.bias, *linear, taps, scale, shift, grid[1], heads, norm.eps,
        (x.shape[2] // heads) ** -0.5, expanded,
    )  # fmt: skip
    return out


__all__ = [
    "EPILOGUES",
    "compute_dtype",
    "conv_act_norm",
    "conv_act_norm_conv",
    "conv_norm_act",
    "derived",
    "evaluated_norm",
    "folded_conv",
    "is_depthwise",
    "packed_linear",
    "reduced_block",
    "reduced_block_serves",
    "wants_grad",
]
