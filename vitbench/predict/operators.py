"""The operators that a model runs on a CUDA device, seen on tensors without data: what each reads and writes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitbench.catalog import Resolution
from vitbench.trace import cuda, hollow
from vitbench.trace.autocast import enabled, policy
from vitbench.trace.skeleton import quietly
from vitbench.trace.tracer import Tracer

#: Images of the traced batch: a prime, whose multiples no size of a model is by chance.
BATCH = 113


class Operand(NamedTuple):
    """A tensor as a kernel sees it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    itemsize: int
    floating: bool

    @property
    def elements(self) -> int:
        """Those that lie in memory: axes that are broadcast count once."""
        count = 1
        for size, step in zip(self.shape, self.stride, strict=True):
            count *= size if step or size == 0 else 1
        return count

    @property
    def bytes(self) -> int:
        return self.elements * self.itemsize

    @property
    def grows(self) -> bool:
        """Whether its size is a multiple of the batch's."""
        return self.elements % BATCH == 0


class Call(NamedTuple):
    """An operator's name without `aten::`, its tensors in the order of its arguments, and its numbers."""

    op: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    numbers: tuple[Any, ...]
    pointwise: bool


class Step(NamedTuple):
    """A call with the numbers of the values that its inputs and outputs are: who writes a tensor makes a new value."""

    call: Call
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class Trace(NamedTuple):
    """Operators with how often each runs, and the peak of memory as lines: (bytes, bytes for each image).

    At any batch the largest value of a line is what tensors take at the peak. `within` are those of the calls that the
    modules asked for make; `steps` are all calls in their order.
    """

    calls: Counter[Call]
    memory: tuple[tuple[int, int], ...]
    within: Counter[Call]
    steps: list[Step]


def trace(
    model: nn.Module,
    resolution: Resolution,
    layout: str = "nchw",
    autocast: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    within: Collection[nn.Module] = (),
) -> Trace:
    """What a model in evaluation mode runs for images [B, 3, *resolution], seen at B = BATCH.

    Args:
        model: on any device, the meta device too; its tensors are replaced by hollow ones, so it is spent.
        autocast: dtype of mixed precision under CUDA's rules, or None.
        dtype: that floating-point parameters and buffers get; None leaves theirs.
        within: modules of the model whose calls are counted apart too.

    Raises: whatever the model raises on tensors without data.
    """
    calls: Counter[Call] = Counter()
    steps: list[Step] = []
    values: dict[int, int] = {}  # that storages hold, by their addresses
    numbers = itertools.count()
    inner: Counter[Call] = Counter()
    depth = 0

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal depth
        depth -= 1

    def watch(op: Any, args: tuple[Any, ...], out: Any) -> None:
        if not _is_free(op):
            call = _call(op, args, out)
            calls[call] += 1
            inner[call] += depth > 0
            reads = tuple(values.setdefault(storage, next(numbers)) for storage in _storages(args))
            written = {storage: next(numbers) for storage in _storages(out)}
            values.update(written)
            steps.append(Step(call, reads, tuple(written[storage] for storage in _storages(out))))

    _empty(model, layout == "nhwc", dtype)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    instead = cuda.instead()
    tracer = Tracer(instead, watch=watch)
    for module in within:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    with quietly(), cuda.rules(instead), tracer:
        x = torch.empty(BATCH, 3, *resolution, dtype=dtype, memory_format=memory_format)
        held = [*model.parameters(), *model.buffers(), x]
        with tracer.recording({"": held}), torch.inference_mode(), policy(autocast), enabled(autocast):
            model.eval()(x)
    return Trace(calls, _peaks(tracer.sizes, tracer.events), +inner, steps)


def _peaks(sizes: list[int], events: list[int]) -> tuple[tuple[int, int], ...]:
    """Of all moments those that are the peak at some batch, as lines over the batch."""
    size = np.array(sizes, np.int64)
    grows = size % BATCH == 0
    lines = np.stack([np.where(grows, 0, size), np.where(grows, size // BATCH, 0)])
    numbers = np.array(events, np.int64)
    comes = numbers >= 0
    alive = np.cumsum(lines[:, np.where(comes, numbers, ~numbers)] * np.where(comes, 1, -1), axis=1)
    hull: list[tuple[int, int]] = []
    for constant, slope in sorted(set(zip(*alive.tolist(), strict=True)), key=lambda line: (line[1], line[0])):
        while hull and (hull[-1][0] <= constant or (len(hull) > 1 and _never(hull[-2], hull[-1], (constant, slope)))):
            hull.pop()
        hull.append((constant, slope))
    return tuple(hull)


def _never(first: tuple[int, int], middle: tuple[int, int], last: tuple[int, int]) -> bool:
    """Whether the middle one of three lines, by their slopes, is nowhere above both others."""
    (a, x), (b, y), (c, z) = first, middle, last
    return (a - c) * (y - x) <= (a - b) * (z - x)


def _empty(model: nn.Module, channels_last: bool, dtype: torch.dtype | None) -> None:
    """Puts a hollow tensor in the place of each that a module holds; one that is used twice is replaced once."""
    made: dict[int, Tensor] = {}
    kept = []  # no identity is given out twice

    def replaced(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        if id(tensor) not in made:
            kept.append(tensor)
            kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            made[id(tensor)] = hollow.like(tensor, kind, channels_last and tensor.ndim == 4)
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(replaced(parameter, dtype), requires_grad=False)
        for tensors, kind in ((module._buffers, dtype), (vars(module), None)):
            for name, value in tensors.items():
                if isinstance(value, Tensor):
                    tensors[name] = replaced(value, kind)


_ALLOCATIONS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "alias",
                "lift_fresh", "_local_scalar_dense", "_unsafe_view", "resize_", "as_strided_", "detach_")  # fmt: skip


@cache
def _is_free(op: Any) -> bool:
    """Whether an operator starts no kernel: views, and tensors without content."""
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns)
    return views or _name(op) in _ALLOCATIONS


@cache
def _name(op: Any) -> str:
    return str(op._schema.name).removeprefix("aten::")


@cache
def _is_pointwise(op: Any) -> bool:
    return torch.Tag.pointwise in op.tags


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _storages(value: Any) -> list[int]:
    return [item.untyped_storage()._cdata for item in _flat(value) if isinstance(item, Tensor)]


def _operand(tensor: Tensor) -> Operand:
    return Operand(tuple(tensor.shape), tensor.stride(), tensor.element_size(), tensor.is_floating_point())


def _call(op: Any, args: tuple[Any, ...], out: Any) -> Call:
    inputs = tuple(_operand(item) for item in _flat(args) if isinstance(item, Tensor))
    outputs = tuple(_operand(item) for item in _flat(out) if isinstance(item, Tensor))
    numbers = tuple(
        tuple(value) if isinstance(value, (list, tuple)) else value
        for value in args
        if isinstance(value, (bool, int)) or (isinstance(value, (list, tuple)) and all(type(v) is int for v in value))
    )
    return Call(_name(op), inputs, outputs, numbers, _is_pointwise(op))


__all__ = ["BATCH", "Call", "Operand", "Step", "Trace", "trace"]
