"""What a CPU kernel allocates inside itself, found by running it alone on a few images.

oneDNN copies input, weights and output into blocked layouts and takes scratch space, which can exceed the
convolution's own output several times. On a processor without AVX-512 torch leaves half precision to its own
convolution, which unfolds the input: a 3 x 3 filter takes nine copies of it. How much it is depends on the
processor and on oneDNN's choice of algorithm, so it is measured, once for every distinct convolution. Resizes copy
few channels into channels_last, products of matrices in half precision pack their operands, and layers that torch runs
whole make what is inside of them: those are measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vitbench.measure.allocations import rise_of

#: Up to this batch the convolution itself is run; beyond, what it allocates is taken to be affine in the batch.
LARGEST_BATCH = 4


aten = torch.ops.aten
_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
#: Other kernels that allocate inside themselves, by the number of leading arguments that have the batch as first axis;
#: 0: the batch is elsewhere too, and the kernel is run as it is.
_OTHERS = {
    aten.upsample_bilinear2d.default: 1,
    aten.upsample_bilinear2d.vec: 1,
    aten.upsample_bicubic2d.default: 1,
    aten.upsample_bicubic2d.vec: 1,
    aten._upsample_bilinear2d_aa.default: 1,
    aten._upsample_bicubic2d_aa.default: 1,
    aten.upsample_bilinear2d_backward.default: 0,
    aten.upsample_bicubic2d_backward.default: 0,
    aten._transformer_encoder_layer_fwd.default: 1,
    aten._native_multi_head_attention.default: 3,
    aten.lstm.input: 0,
    aten.gru.input: 0,
    aten.rnn_tanh.input: 0,
    aten.rnn_relu.input: 0,
    aten.mkldnn_rnn_layer_backward.default: 0,
}
#: Up to this batch a recurrent layer is run to see what it keeps: rounded to pages, it is too coarse on fewer.
_LARGEST_RECURRENT = 16
#: Matrix products, for which oneDNN packs operands of half precision; by the numbers of the operands.
_PRODUCTS = {aten.addmm.default: (1, 2), aten.mm.default: (0, 1), aten.bmm.default: (0, 1)}
#: Multiplications of a product that is still run; of larger ones what they allocate is not known.
LARGEST_PRODUCT = 2**33


@dataclass(frozen=True)
class Kernel:
    """A call of an operator that allocates inside itself, with the shapes, strides and dtypes of its tensors."""

    op: Any
    args: tuple[Any, ...]
    elements: int  # of all arguments and results
    unfolded: int  # elements of one group's input with a copy of each pixel for every place of the filter over it

    @classmethod
    def of(cls, op: Any, args: tuple[Any, ...], out: Any) -> Kernel | None:
        """The call `op(*args)` that gave `out`, or None when it is none of those."""
        if op in _PRODUCTS:
            a, b = (args[number] for number in _PRODUCTS[op])
            if a.dtype is torch.float32 or a.numel() * b.shape[-1] > LARGEST_PRODUCT:
                return None
        elif op not in _CONVOLUTIONS and op not in _OTHERS:
            return None
        tensors = [*args, *(out if isinstance(out, tuple) else (out,))]
        elements = sum(tensor.numel() for tensor in _tensors(tensors))
        unfolded = 0
        if op in _CONVOLUTIONS:
            weight, y = (args[1], out) if isinstance(out, Tensor) else (args[2], args[0])
            unfolded = prod(weight.shape[1:]) * (y.numel() // weight.shape[0])
        return cls(op, tuple(_frozen(arg) for arg in args), elements, unfolded)

    def rise_bound(self) -> int:
        """More than `rise` can be.

        Of a convolution, of every tensor the result and fp32 copies in two layouts, and one per thread. To these come
        the unfolded input and, in the backward pass, its gradient, both in half precision. Layouts are blocked by 16
        channels, to which the few channels of a group are padded: a depthwise weight grows 256-fold. Of a product, the
        same copies of what is multiplied. Of others, eight
        times all of their tensors, and the scores of attention: tokens times channels at most for each token and head.
        """
        if self.op in _PRODUCTS:
            return 4 * (3 + torch.get_num_threads()) * self.elements
        if self.op in _OTHERS:
            return 4 * (3 + torch.get_num_threads()) * 8 * self.elements + self._scores()
        images = self._images()
        weight, groups = self.args[images], self.args[images + 7]
        blocked = (-(-size // 16) * 16 for size in (weight.shape[0] // groups, weight.shape[1]))
        padded = groups * prod(blocked) * prod(weight.shape[2:])
        size = max(4, weight.dtype.itemsize)
        return size * ((3 + torch.get_num_threads()) * (self.elements + padded) + self.unfolded)

    def _scores(self) -> int:
        if self.op not in (aten._transformer_encoder_layer_fwd.default, aten._native_multi_head_attention.default):
            return 0
        batch, tokens, width = self.args[0].shape
        return 3 * 4 * batch * width * tokens * tokens

    def rise(self) -> int:
        """Bytes by which the call raises the live memory at most, its results included."""
        if not self._images():
            return _rise(self.op, self.args)
        return _affine(lambda size: _rise(self.op, self._with_batch(size)), self._batch(), LARGEST_BATCH)

    def _images(self) -> int:
        """How many leading arguments have the batch as first axis: x, or the output's gradient and x."""
        if self.op in _OTHERS or self.op in _PRODUCTS:
            return _OTHERS.get(self.op, 0)
        return 1 if self.op is aten.convolution.default else 2

    def _batch(self) -> int:
        return int(self.args[0].shape[0])

    def _with_batch(self, batch: int) -> tuple[Any, ...]:
        images = tuple(replace(arg, shape=(batch, *arg.shape[1:])) for arg in self.args[: self._images()])
        return images + self.args[self._images() :]


@dataclass(frozen=True)
class _Layout:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _frozen(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return _Layout(tuple(arg.shape), arg.stride(), arg.dtype)
    return tuple(_frozen(item) for item in arg) if isinstance(arg, (list, tuple)) else arg


def _real(arg: Any) -> Any:
    if isinstance(arg, _Layout):
        return torch.empty_strided(arg.shape, arg.stride, dtype=arg.dtype).zero_()
    return [_real(item) for item in arg] if isinstance(arg, tuple) else arg


def _affine(bytes_at: Callable[[int], int], batch: int, largest: int) -> int:
    """The bytes at a batch: found out up to the `largest`, beyond it worked out from that and its half."""
    if batch <= largest:
        return bytes_at(batch)
    half, whole = bytes_at(largest // 2), bytes_at(largest)
    return whole + (batch - largest) * (whole - half) // (largest // 2)


def recurrent_layer(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What aten.mkldnn_rnn_layer gives, with what it keeps for its backward pass: torch says 0 bytes of that.

    Args:
        x, others: that operator's; x and the states are [T, B, C] and [B, H].
    """
    hx, cx, hidden = others[4], others[5], others[9]
    batch = x.shape[1]
    args = tuple(_frozen(arg) for arg in (x, *others))
    kept = _affine(lambda size: _kept(args, size), batch, _LARGEST_RECURRENT)
    y = torch.empty(*x.shape[:2], hidden, dtype=x.dtype)
    return y, torch.empty_like(hx), torch.empty_like(cx), torch.empty(kept, dtype=torch.uint8)


@cache
def _kept(frozen: tuple[Any, ...], batch: int) -> int:
    x, *weights, hx, cx = (arg for arg in frozen if isinstance(arg, _Layout))
    steps, _, width = x.shape
    x = replace(x, shape=(steps, batch, width))
    hx, cx = (replace(state, shape=(batch, *state.shape[1:])) for state in (hx, cx))
    # Asked while a model is traced; kept is something for a backward pass alone.
    with _disable_current_modes(), torch.enable_grad():
        given = [_real(arg) for arg in (x, *weights, hx, cx, *frozen[7:])]
        return int(aten.mkldnn_rnn_layer.default(*given)[3].nbytes)


@cache
def _rise(op: Any, frozen: tuple[Any, ...]) -> int:
    args = [_real(arg) for arg in frozen]
    with torch.no_grad():
        return rise_of(lambda: op(*args))
