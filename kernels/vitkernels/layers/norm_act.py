"""Batch norm and activation, in either order, that keep one map for the backward pass instead of two."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Order = Literal["norm_act", "act_norm"]
_aten = torch.ops.aten


def activate(x: Tensor, activation: str, inplace: bool = False) -> Tensor:
    """The activation by name; inplace where torch has it so and the caller owns x."""
    if activation == "relu":
        return F.relu(x, inplace=inplace)
    if activation == "relu6":
        return F.relu6(x, inplace=inplace)
    if activation == "silu":
        return F.silu(x, inplace=inplace)
    if activation == "hardswish":
        return F.hardswish(x, inplace=inplace)
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation != "none":
        raise ValueError(f"activation {activation!r} is none of none, relu, relu6, silu, hardswish, gelu, gelu_tanh")
    return x


def _slope_times(grad: Tensor, x: Tensor, activation: str) -> Tensor:
    """grad times the activation's derivative at x."""
    if activation == "relu":
        return _aten.threshold_backward(grad, x, 0)
    if activation == "relu6":
        return _aten.hardtanh_backward(grad, x, 0, 6)
    if activation == "silu":
        return _aten.silu_backward(grad, x)
    if activation == "hardswish":
        return _aten.hardswish_backward(grad, x)
    if activation in ("gelu", "gelu_tanh"):
        return _aten.gelu_backward(grad, x, approximate="tanh" if activation == "gelu_tanh" else "none")
    return grad


def statistics(sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] from sums of values and of squares [2, C]."""
    mean = sums[0] / count
    return mean, (sums[1] / count - mean * mean).clamp_min(0.0)


def _evaluate(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """The norm of x with given statistics, by torch's own kernel."""
    mean, variance = _as_kernels_want(x, weight, mean, variance)
    return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]


def _as_kernels_want(x: Tensor, weight: Tensor | None, *statistics: Tensor) -> tuple[Tensor, ...]:
    """Statistics [C] in the dtype that torch's kernels take them in: at least fp32, on the CPU the parameters'."""
    if x.is_cuda:
        return statistics
    dtype = x.dtype if weight is None else weight.dtype
    return tuple(t.to(dtype) for t in statistics)


class _NormAct(torch.autograd.Function):
    """With the statistics [C] that sums [2, C] give, or of the batch; returns the map, mean and 1 / deviation."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        sums: Tensor | None,
        eps: float,
        activation: str,
        order: Order,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = activate(x, activation) if order == "act_norm" else x
        if sums is None:
            y, mean, spread = torch.native_batch_norm(y, weight, bias, None, None, True, 0.0, eps)
            wide = torch.promote_types(mean.dtype, torch.float32)
            mean, spread = mean.to(wide), spread.to(wide)
        else:
            mean, variance = statistics(sums, x.numel() // x.shape[1])
            spread = (variance + eps).rsqrt()
            y = _evaluate(y, weight, bias, mean, variance, eps)
        if order == "norm_act":
            y = activate(y, activation, inplace=True)
        return y, mean, spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, *_, ctx.eps, ctx.activation, ctx.order = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, spread = ctx.saved_tensors
        y = activate(x, ctx.activation) if ctx.order == "act_norm" else x
        if ctx.order == "norm_act" and ctx.activation != "none":
            z = _evaluate(y, weight, bias, mean, spread**-2 - ctx.eps, ctx.eps)
            grad = _slope_times(grad, z, ctx.activation)
        mask = [True, weight is not None, bias is not None]
        mean, spread = _as_kernels_want(y, weight, mean, spread)
        dy, dweight, dbias = _aten.native_batch_norm_backward(
            grad, y, weight, None, None, mean, spread, True, ctx.eps, mask
        )
        if ctx.order == "act_norm":
            dy = _slope_times(dy, x, ctx.activation)
        return dy, dweight, dbias, None, None, None, None


def _check_count(count: int) -> None:
    """ValueError for a batch without spread, as torch's own norms raise it."""
    if count == 1:
        raise ValueError("batch norm in training: expected more than 1 value per channel, got 1")


def affine_of_sums(norm: nn.BatchNorm2d, sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """scale and shift [C] of a batch norm in training, differentiable in sums; running statistics are updated.

    Raises: ValueError where the batch has one value a channel.
    """
    _check_count(count)
    mean, variance = statistics(sums, count)
    update_running(norm, mean.detach(), variance.detach(), count)
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(scale.dtype)
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.to(shift.dtype)


@torch.no_grad()
def update_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """A norm's running statistics after a batch of `count` values a channel, as torch's own forward leaves them."""
    if not norm.training or not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    factor: float | Tensor = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            factor = 1.0 / norm.num_batches_tracked
    unbiased = variance * (count / max(count - 1, 1))
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), factor)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), factor)


def norm_act(x: Tensor, norm: nn.BatchNorm2d, activation: str, order: Order, sums: Tensor | None = None) -> Tensor:
    """act(norm(x)) or norm(act(x)); in training with the statistics of the batch, or those that `sums` [2, C] give.

    The gradient through the statistics is part of the norm's own, so `sums` gets none.

    Raises: ValueError where the batch has one value a channel.
    """
    if not norm.training and norm.running_mean is not None:
        if order == "act_norm":
            return nn.BatchNorm2d.forward(norm, activate(x, activation))
        return activate(nn.BatchNorm2d.forward(norm, x), activation)
    _check_count(x.numel() // x.shape[1])
    sums = None if sums is None else sums.detach()
    y, mean, spread = _NormAct.apply(x, norm.weight, norm.bias, sums, norm.eps, activation, order)
    update_running(norm, mean, spread**-2 - norm.eps, x.numel() // x.shape[1])
    return y
