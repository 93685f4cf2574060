"""What a CPU convolution allocates inside itself, found by running it alone on a few images.

oneDNN copies input, weights and output into blocked layouts and takes scratch space, which can exceed the
convolution's own output several times. On a processor without AVX-512 torch leaves half precision to its own
convolution, which unfolds the input: a 3 x 3 filter takes nine copies of it. How much it is depends on the
processor and on oneDNN's choice of algorithm, so it is measured, once for every distinct convolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from vitbench.measure.allocations import rise_of

#: Up to this batch the convolution itself is run; beyond, what it allocates is taken to be affine in the batch.
LARGEST_BATCH = 4


@dataclass(frozen=True)
class Convolution:
    """A call of aten::convolution or its backward, with the shapes, strides and dtypes of its tensors."""

    op: Any
    args: tuple[Any, ...]
    elements: int  # of all arguments and results
    unfolded: int  # elements of one group's input with a copy of each pixel for every place of the filter over it

    @classmethod
    def of(cls, op: Any, args: tuple[Any, ...], out: Any) -> Convolution | None:
        """The call `op(*args)` that gave `out`, or None when it is no convolution."""
        if op not in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            return None
        tensors = [*args, *(out if isinstance(out, tuple) else (out,))]
        elements = sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor))
        weight, y = (args[1], out) if isinstance(out, Tensor) else (args[2], args[0])
        unfolded = prod(weight.shape[1:]) * (y.numel() // weight.shape[0])
        return cls(op, tuple(_frozen(arg) for arg in args), elements, unfolded)

    def rise_bound(self) -> int:
        """More than `rise` can be: of every tensor the result and fp32 copies in two layouts, and one per thread.

        To these come the unfolded input and, in the backward pass, its gradient, both in half precision. Layouts
        are blocked by 16 channels, to which the few channels of a group are padded: a depthwise weight grows
        256-fold.
        """
        images = self._images()
        weight, groups = self.args[images], self.args[images + 7]
        blocked = (-(-size // 16) * 16 for size in (weight.shape[0] // groups, weight.shape[1]))
        padded = groups * prod(blocked) * prod(weight.shape[2:])
        size = max(4, weight.dtype.itemsize)
        return size * ((3 + torch.get_num_threads()) * (self.elements + padded) + self.unfolded)

    def rise(self) -> int:
        """Bytes by which the call raises the live memory at most, its results included."""
        batch = self._batch()
        if batch <= LARGEST_BATCH:
            return _rise(self.op, self.args)
        small, large = (_rise(self.op, self._with_batch(size)) for size in (LARGEST_BATCH // 2, LARGEST_BATCH))
        return large + (batch - LARGEST_BATCH) * (large - small) // (LARGEST_BATCH // 2)

    def _images(self) -> int:
        """How many leading arguments have the batch as first axis: x, or the output's gradient and x."""
        return 1 if self.op is torch.ops.aten.convolution.default else 2

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


def _frozen(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return _Layout(tuple(arg.shape), arg.stride(), arg.dtype)
    return tuple(arg) if isinstance(arg, list) else arg


@cache
def _rise(op: Any, frozen: tuple[Any, ...]) -> int:
    args = [
        torch.empty_strided(arg.shape, arg.stride, dtype=arg.dtype).zero_() if isinstance(arg, _Layout) else arg
        for arg in frozen
    ]
    with torch.no_grad():
        return rise_of(lambda: op(*args))
