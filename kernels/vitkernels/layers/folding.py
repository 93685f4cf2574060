"""Batch norms folded into weights: evaluated, a norm is a scale and a shift of each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitkernels.layers.derived import derived
from vitkernels.runtime.device import autocast_dtype


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products of x run in: autocast's where it is on."""
    return autocast_dtype(x) or x.dtype


def uses_batch(norm: nn.BatchNorm2d) -> bool:
    return norm.training or norm.running_mean is None


def affine(state: tuple[Tensor | None, ...], eps: float) -> tuple[Tensor, Tensor]:
    """scale and shift [C], at least fp32, of an evaluated batch norm given its `norm_state`."""
    weight, bias, mean, variance = state
    assert mean is not None
    assert variance is not None
    acc = torch.promote_types(variance.dtype, torch.float32)
    scale = (variance.to(acc) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(acc)
    shift = -mean.to(acc) * scale
    return scale, shift if bias is None else shift + bias.to(acc)


def norm_state(norm: nn.BatchNorm2d | None) -> tuple[Tensor | None, ...]:
    return (None,) * 4 if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)


def batches_seen(*norms: nn.BatchNorm2d | None) -> tuple[Tensor | None, ...]:
    """What counts the batches that running statistics have seen: torch's own updates of those are not counted."""
    return tuple(None if norm is None else norm.num_batches_tracked for norm in norms)


def evaluated_norm(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The scale and shift [C], fp32, that an evaluated batch norm is."""

    def make(*state: Tensor | None) -> tuple[Tensor, Tensor]:
        return affine(state, norm.eps)

    found: tuple[Tensor, Tensor] = derived(
        norm, "affine", make, *norm_state(norm), key=(norm.eps,), watch=batches_seen(norm)
    )
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
            scale, shift = affine(norms[:4], before.eps)
            moved = (wide * shift[:, None, None]).sum((1, 2, 3))
            offset = moved if offset is None else offset + moved
            wide = wide * scale[:, None, None]
        if after is not None:
            scale, shift = affine(norms[4:], after.eps)
            wide = wide * scale[:, None, None, None]
            offset = shift if offset is None else offset * scale + shift
        return wide.to(dtype), offset

    sources = (conv.weight, conv.bias, *norm_state(before), *norm_state(after))
    found: tuple[Tensor, Tensor | None] = derived(
        conv, "folded", make, *sources, key=(dtype, *eps), watch=batches_seen(before, after)
    )
    return found
