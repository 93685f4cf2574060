"""What frequent operators give, without asking torch's FakeTensorMode, which takes milliseconds.

For tensors that lie plainly it is known: contiguous, or dense in another order of axes. The meta device knows of the
operators in ON_META what they give on a CPU, and is quicker too. A test holds both against FakeTensorMode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

#: A new tensor's shape, strides and dtype; None where the operator gives None.
Made = tuple[tuple[int, ...], tuple[int, ...], torch.dtype] | None


def results(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Made] | None:
    """The new tensors that `op` gives, each in a storage of its own; None where it takes torch to know them."""
    rule = _RULES.get(op)
    return None if rule is None else rule(*args, **kwargs)


def _dense(x: Tensor) -> bool:
    """Whether torch would lay out a tensor like `x` as `x` is."""
    shape, stride = tuple(x.shape), x.stride()
    if stride == strides(shape):
        return bool(x.numel())
    if 1 in shape or 0 in stride or not x.numel():
        return False
    return sorted(stride) == _steps(sorted(zip(stride, shape, strict=True)))


def _dense_but_ones(x: Tensor) -> bool:
    """As `_dense`, whatever the strides of axes of size 1."""
    axes = sorted((step, size) for step, size in zip(x.stride(), x.shape, strict=True) if size != 1)
    return bool(x.numel()) and [step for step, _ in axes] == _steps(axes)


def _steps(axes: list[tuple[int, int]]) -> list[int]:
    return [prod(size for _, size in axes[:number]) for number in range(len(axes))]


@cache
def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Made:
    return (tuple(x.shape), x.stride(), dtype or x.dtype)


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> Made:
    return (shape, strides(shape), dtype)


def _elementwise(x: Any, *more: Any, **options: Any) -> list[Made] | None:
    """Of a floating-point tensor and others that are just like it, or numbers."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or not _dense(x):
        return None
    for other in more:
        if isinstance(other, Tensor):
            if (other.shape, other.stride(), other.dtype) != (x.shape, x.stride(), x.dtype):
                return None
        elif isinstance(other, complex):
            return None
    return [_like(x)]


def _of_two(x: Any, other: Any, **options: Any) -> list[Made] | None:
    """As `_elementwise`, or of two tensors that lie contiguous, of which the smaller one is broadcast."""
    if not isinstance(x, Tensor) or not isinstance(other, Tensor) or not x.ndim or not other.ndim:
        return _elementwise(x, other)
    if not x.is_floating_point() or not other.is_floating_point() or not _plain(x, other):
        return _elementwise(x, other)
    large, small = (x, other) if x.numel() >= other.numel() else (other, x)
    shape = tuple(large.shape)
    ones = (1,) * (large.ndim - small.ndim)
    if large.ndim < small.ndim or any(b not in (1, a) for a, b in zip(shape, (*ones, *small.shape), strict=True)):
        return None
    return [_new(shape, torch.promote_types(x.dtype, other.dtype))]


def _softmax(x: Tensor, dim: int, widen: bool) -> list[Made] | None:
    return None if widen or not x.is_contiguous() else _elementwise(x)


def _softmax_backward(grad: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> list[Made] | None:
    return _elementwise(grad, y) if dtype is grad.dtype and grad.is_contiguous() else None


def _copy(x: Tensor, dtype: torch.dtype | None = None, **options: Any) -> list[Made] | None:
    plain = all(value in (None, False, torch.strided, torch.device("cpu")) for value in options.values())
    if not plain:
        return None
    if dtype is not None and _is_part(x):
        return [_new(tuple(x.shape), dtype)]
    return [_like(x, dtype)] if _dense_but_ones(x) else None


def _is_part(x: Tensor) -> bool:
    """Whether it is a slice of a contiguous tensor, with gaps and no axis of size 1."""
    shape, stride = tuple(x.shape), x.stride()
    ordered = all(step >= size * after for step, size, after in zip(stride, shape[1:], stride[1:], strict=False))
    return ordered and min(shape, default=1) > 1 and stride[-1] >= 1 and stride != strides(shape)


def _like_it(
    x: Tensor, dtype: torch.dtype | None = None, memory_format: Any = None, **options: Any
) -> list[Made] | None:
    return _copy(x, dtype, **options) if memory_format in (None, torch.preserve_format) else None


def _given(x: Tensor, shape: list[int], dtype: torch.dtype | None = None, **options: Any) -> list[Made] | None:
    plain = all(value in (None, False, torch.strided, torch.device("cpu")) for value in options.values())
    return [_new(tuple(shape), dtype or x.dtype)] if plain and x.is_cpu and 0 not in shape else None


def _given_strides(x: Tensor, shape: list[int], stride: list[int], **options: Any) -> list[Made] | None:
    return _given(x, shape, **options) if tuple(stride) == strides(tuple(shape)) else None


def _dropout(x: Tensor, p: float, train: bool | None) -> list[Made] | None:
    return [_like(x), _like(x, torch.bool)] if train and 0 < p < 1 and x.is_floating_point() and _dense(x) else None


def _clone(x: Tensor, memory_format: torch.memory_format | None = None) -> list[Made] | None:
    if memory_format is torch.contiguous_format and x.numel():
        return [_new(tuple(x.shape), x.dtype)]
    return _copy(x) if memory_format in (None, torch.preserve_format) else None


def _roll(x: Tensor, shifts: list[int], dims: list[int]) -> list[Made] | None:
    return [_like(x)] if dims and _dense(x) and x.is_contiguous() else None


def _sum(x: Tensor, dims: list[int], keepdim: bool = False, **options: Any) -> list[Made] | None:
    """Over the first axes."""
    number = len(dims)
    if options or list(dims) != list(range(number)) or not number or not x.is_floating_point() or not _dense(x):
        return None
    kept = tuple(x.shape[number:])
    return [_new((1,) * number + kept if keepdim else kept, x.dtype)] if x.is_contiguous() else None


def _mean(x: Tensor, dims: list[int] | None, keepdim: bool = False, **options: Any) -> list[Made] | None:
    if options or not dims or not x.is_floating_point() or not x.numel():
        return None
    over = {dim % x.ndim for dim in dims}
    shape = [1 if axis in over else size for axis, size in enumerate(x.shape) if keepdim or axis not in over]
    return [_new(tuple(shape), x.dtype)] if _plain(x) else None


def _cat(tensors: list[Tensor], dim: int = 0) -> list[Made] | None:
    first = tensors[0]
    axis = dim % first.ndim if first.ndim else 0
    if not first.ndim or not _plain(*tensors) or any(t.dtype is not first.dtype for t in tensors):
        return None
    before, after = tuple(first.shape[:axis]), tuple(first.shape[axis + 1 :])
    if any(t.ndim != first.ndim or (*t.shape[:axis], *t.shape[axis + 1 :]) != (*before, *after) for t in tensors):
        return None
    return [_new((*before, sum(t.shape[axis] for t in tensors), *after), first.dtype)]


def _matrices(a: Tensor, b: Tensor) -> list[Made] | None:
    fit = a.dtype is b.dtype and a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
    return [_new((*a.shape[:-1], b.shape[-1]), a.dtype)] if fit and a.numel() and b.numel() else None


def _addmm(bias: Tensor, a: Tensor, b: Tensor, **options: Any) -> list[Made] | None:
    fits = not options and bias.ndim == 1 and bias.dtype is a.dtype and bias.shape[0] == b.shape[-1]
    return _matrices(a, b) if fits else None


def _plain_fp32(*tensors: Tensor | None) -> bool:
    return all(t is None or (t.dtype is torch.float32 and t.is_contiguous() and _dense(t)) for t in tensors)


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> list[Made] | None:
    if not _plain_fp32(weight, bias) or x.dtype is not torch.float32 or tuple(x.shape[-len(shape) :]) != tuple(shape):
        return None
    one = _new((*x.shape[: -len(shape)], *(1 for _ in shape)), x.dtype)
    return [_new(tuple(x.shape), x.dtype), one, one] if x.numel() else None


def _layer_norm_backward(
    grad: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: Any, bias: Any, mask: list[bool]
) -> list[Made] | None:
    if not _plain_fp32(grad, x, mean, rstd, weight, bias) or grad.shape != x.shape or weight is None or bias is None:
        return None
    return [_like(one) if wanted else None for one, wanted in zip((x, weight, bias), mask, strict=True)]


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> list[Made] | None:
    if x.ndim != 4 or not _dense_but_ones(x) or weight is None or not _plain_fp32(weight, bias, mean, var):
        return None
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or weight.shape[0] != x.shape[1]:
        return None
    kept = _like(weight) if training else _new((0,), x.dtype)
    return [_like(x), kept, kept]


def _batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Any, mean: Any, var: Any, a: Any, b: Any, train: bool, eps: float, mask: list[bool]
) -> list[Made] | None:
    alike = (grad.shape, grad.stride(), grad.dtype) == (x.shape, x.stride(), x.dtype)
    if not alike or x.ndim != 4 or not _dense(x) or not train or weight is None or not all(mask):
        return None
    return [_like(x), _like(weight), _like(weight)] if _plain_fp32(weight, mean, var, a, b) else None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> list[Made] | None:
    if transposed or x.ndim != 4 or x.dtype is not weight.dtype or not _plain(weight):
        return None
    last = _is_last(x)
    if not (last or _comes_plain(x)):
        return None
    taken = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sides = tuple((size + 2 * pad - dil * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, dil in taken)
    if min(sides) < 1:
        return None
    shape = (x.shape[0], weight.shape[0], *sides)
    return [(shape, _last(shape), x.dtype) if last else _new(shape, x.dtype)]


def _last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a map [B, C, h, w] that lies channels-last."""
    _, channels, height, width = shape
    return (channels * height * width, 1, channels * width, channels)


def _comes_plain(x: Tensor) -> bool:
    """Whether torch takes a map for a contiguous one, as it does when an image begins before the last one's end."""
    return _plain(x) or (bool(x.numel()) and x.stride(0) < x.stride(2) * x.shape[2])


def _is_last(x: Tensor) -> bool:
    """Whether a map lies channels-last and cannot be taken for a contiguous one."""
    _, channels, height, width = x.shape
    return channels > 1 and height * width > 1 and bool(x.numel()) and x.stride() == _last(tuple(x.shape))


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, mask: list[bool],
) -> list[Made] | None:  # fmt: skip
    if transposed or x.ndim != 4 or not grad.dtype is x.dtype is weight.dtype or not (grad.numel() and _plain(weight)):
        return None
    bias_grad = _new((weight.shape[0],), x.dtype)
    made: tuple[Made, ...]
    if _is_last(x):
        shape = tuple(weight.shape)
        made = (_like(x), (shape, _last(shape), x.dtype), bias_grad)
    elif _comes_plain(x):
        made = (_new(tuple(x.shape), x.dtype), _like(weight), bias_grad)
    else:
        return None
    return [one if wanted else None for one, wanted in zip(made, mask, strict=True)]


def _plain(*tensors: Tensor) -> bool:
    """With the strides of a contiguous tensor, those of axes of size 1 included."""
    return all(t.numel() and t.stride() == strides(tuple(t.shape)) for t in tensors)


#: Operators whose results have the same shapes, strides and dtypes on every device. A convolution's backward is none:
#: with torch 2.11 the meta device lays the input's gradient out otherwise.
ON_META = frozenset(
    {
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_efficient_attention_backward.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_backward.default,
        aten._softmax.default,
        aten._softmax_backward_data.default,
        aten._to_copy.default,
        aten.add.Tensor,
        aten.cat.default,
        aten.clamp_min.default,
        aten.clone.default,
        aten.constant_pad_nd.default,
        aten.div.Scalar,
        aten.div.Tensor,
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.flip.default,
        aten.ge.Scalar,
        aten.gelu.default,
        aten.gelu_backward.default,
        aten.max_pool2d_with_indices.default,
        aten.max_pool2d_with_indices_backward.default,
        aten.mean.dim,
        aten.mul.Scalar,
        aten.mul.Tensor,
        aten.native_batch_norm_backward.default,
        aten.native_dropout_backward.default,
        aten.native_layer_norm_backward.default,
        aten.neg.default,
        aten.nll_loss_backward.default,
        aten.nll_loss_forward.default,
        aten.ones_like.default,
        aten.pow.Tensor_Scalar,
        aten.rsqrt.default,
        aten.scalar_tensor.default,
        aten.select_backward.default,
        aten.silu_backward.default,
        aten.slice_backward.default,
        aten.stack.default,
        aten.sub.Tensor,
        aten.sum.dim_IntList,
        aten.threshold_backward.default,
        aten.unfold_backward.default,
        aten.where.self,
        aten.zeros.default,
        aten.zeros_like.default,
    }
)

_RULES: dict[Any, Callable[..., list[Made] | None]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten.add.Tensor: _of_two,
    aten.mul.Tensor: _of_two,
    aten.div.Tensor: _elementwise,
    aten.cat.default: _cat,
    aten.mean.dim: _mean,
    aten.addmm.default: _addmm,
    aten.mm.default: _matrices,
    aten.bmm.default: _matrices,
    aten.clone.default: _clone,
    aten._to_copy.default: _copy,
    aten.empty_like.default: _like_it,
    aten.zeros_like.default: _like_it,
    aten.native_dropout.default: _dropout,
    aten.new_empty.default: _given,
    aten.new_zeros.default: _given,
    aten.new_empty_strided.default: _given_strides,
    aten.roll.default: _roll,
    aten.sum.dim_IntList: _sum,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _softmax_backward,
} | dict.fromkeys(
    (
        aten.gelu.default,
        aten.gelu_backward.default,
        aten.relu.default,
        aten.silu.default,
        aten.silu_backward.default,
        aten.sigmoid.default,
        aten.sigmoid_backward.default,
        aten.tanh.default,
        aten.tanh_backward.default,
        aten.threshold_backward.default,
    ),
    _elementwise,
)

__all__ = ["ON_META", "Made", "results", "strides"]
