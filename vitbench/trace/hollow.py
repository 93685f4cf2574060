"""Tensors without data, and what operators make of them.

A hollow tensor is a plain tensor of the CPU, so that torch treats it as one in all things: views, autograd, autocast.
Its storage has a size and lies where nothing may be written, since no operator that computes is run. Torch refuses its
address, so that numpy and DLPack cannot read it; `refusing` keeps others from it. What an operator gives is worked out
once for its arguments' shapes, strides and dtypes, by rules or by torch; to look it up is a hundred times as fast.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from vitbench.trace import compiler, known
from vitbench.trace.autocast import registered

_CPU = torch.device("cpu")
_LENGTH = 2**45
#: Kept for as long as the process lives; pages are zero and take no memory.
_SPACE = np.frombuffer(mmap.mmap(-1, _LENGTH, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ), "u1")
_START = _SPACE.ctypes.data
_END = _START + _LENGTH

#: From a call's arguments to its result.
Recipe = Callable[[tuple[Any, ...], dict[str, Any]], Any]


def make(shape: Iterable[int], stride: Iterable[int], dtype: torch.dtype, nbytes: int, offset: int = 0) -> Tensor:
    """A hollow tensor, alone in a storage of so many bytes. Below autograd, outside of any mode."""
    return _in_storage(_storage(nbytes), shape, stride, dtype, offset)


def new(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A hollow tensor, alone in a storage that just holds it."""
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return make(shape, stride, dtype, (last + 1) * dtype.itemsize if prod(shape) else 0)


def like(tensor: Tensor, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """A hollow tensor of a shape and strides, or channels-last [B, C, h, w]. Outside of any mode."""
    shape, stride = tuple(tensor.shape), tensor.stride()
    if channels_last:
        _, channels, height, width = shape
        stride = (channels * height * width, 1, channels * width, channels)
    return new(shape, stride, dtype)


def _storage(nbytes: int) -> Any:
    return torch._C._construct_storage_from_data_pointer(_START, _CPU, nbytes)


def _in_storage(storage: Any, shape: Any, stride: Any, dtype: torch.dtype, offset: int) -> Tensor:
    made = torch.empty(0, dtype=dtype, device=_CPU).set_(storage, offset, shape, stride)
    torch._C._set_throw_on_mutable_data_ptr(made)
    return made


def is_hollow(tensor: Tensor) -> bool:
    """False also of wrappers that have no storage of their own, such as vmap's."""
    return torch._C._has_storage(tensor) and _START <= torch._C._data_address(tensor) < _END  # type: ignore[attr-defined]


@contextmanager
def refusing() -> Iterator[None]:
    """Meanwhile what reads data unseen by modes, `tolist` and numbers from tensors, refuses tensors that have none."""

    def numbers(tensor: Tensor) -> Any:
        if is_hollow(tensor):
            raise DataDependentOutputException(torch.ops.aten._local_scalar_dense.default)
        return torch._C.TensorBase.tolist(tensor)

    def new(data: Any, **options: Any) -> Tensor:
        if isinstance(data, Tensor) and is_hollow(data):
            return data.detach().to(options.get("dtype"), copy=True)
        return tensor(data, **options)

    tensor = torch.tensor
    torch.tensor = new  # type: ignore[assignment]
    Tensor.tolist = numbers  # type: ignore[assignment, method-assign]
    try:
        with registered({"_local_scalar_dense": numbers}, "CPU"):
            yield
    finally:
        torch.tensor = tensor
        del Tensor.tolist


class _Operator:
    """What of an operator decides how it is run, looked up once, and the recipes of its results by its arguments."""

    def __init__(self, op: Any) -> None:
        self.op = op  # held, so that no other has its id
        # One that allocates nothing and reads no data.
        self.native = (
            op.namespace in ("prim", "profiler")
            or op.is_view
            or torch.Tag.inplace_view in op.tags
            or op is torch.ops.aten._unsafe_view.default
        )
        self.takes_tensors = any("Tensor" in str(argument.type) for argument in op._schema.arguments)
        self.gives_back = gives_back(op)
        self.returns = bool(op._schema.returns)
        self.recipes: dict[Any, Recipe] = {}


#: By id: torch's operators work out their hash in Python.
_operators: dict[int, _Operator] = {}


def _operator(op: Any) -> _Operator:
    found = _operators.get(id(op))
    if found is None:
        found = _operators[id(op)] = _Operator(op)
    return found


def run(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `op` gives for these arguments; it is run itself for views, and where all tensors have their data.

    Raises: what torch raises where a result depends on data.
    """
    how = _operator(op)
    if how.native or (how.takes_tensors and not _any_hollow(args) and not _any_hollow(kwargs.values())):
        return op(*args, **kwargs)
    if how.gives_back:
        if not is_hollow(args[0]) and args[0].is_cpu:
            raise DataDependentOutputException(op)  # what is read of it later would be what was there before
        return args[0]
    if not how.returns:  # as optimizers' kernels, which write to lists of tensors
        return None
    key = (_key(args), tuple(kwargs), _key(kwargs.values()) if kwargs else (), torch.get_default_dtype())
    try:
        recipe = how.recipes.get(key)
    except TypeError:  # an argument that cannot be looked up
        return _learn(op, args, kwargs)(args, kwargs)
    if recipe is None:
        recipe = how.recipes[key] = _learn(op, args, kwargs)
    return recipe(args, kwargs)


@cache
def gives_back(op: Any) -> bool:
    """Whether all that an operator does is to write to its first argument, which it returns."""
    schema = op._schema
    written = [r for r in schema.returns if r.alias_info is not None and r.alias_info.is_write]
    first = schema.arguments[0].alias_info if schema.arguments else None
    return len(schema.returns) == 1 and bool(written) and first is not None and first.is_write


def _any_hollow(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if not value.is_cpu or is_hollow(value):
                return True
        elif isinstance(value, (list, tuple)) and _any_hollow(value):
            return True
    return False


def _key(values: Iterable[Any]) -> Any:
    parts: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            parts.append((value.shape, value.stride(), value.dtype, value.is_cpu))
        elif kind is int or value is None:
            parts.append(value)
        elif kind is tuple or kind is list:
            parts.append(_key(value))
        elif isinstance(value, Tensor):
            parts.append((kind, value.shape, value.stride(), value.dtype, value.is_cpu))
        else:
            parts.append((kind, value))  # 1, 1.0 and True are equal
    return tuple(parts)


@cache
def _fakes() -> FakeTensorMode:
    compiler.load()
    return FakeTensorMode()


def _without_data(value: Any, device: torch.device | None, storages: set[int]) -> Any:
    if isinstance(value, Tensor):
        made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device or value.device)
        storages.add(made.untyped_storage()._cdata)
        return made
    if isinstance(value, torch.device):
        return device or value
    if isinstance(value, (list, tuple)):
        return type(value)([_without_data(item, device, storages) for item in value])
    return value


def _all_here(values: Iterable[Any]) -> bool:
    """Whether every tensor and device among them is the CPU's."""
    for value in values:
        if isinstance(value, (list, tuple)):
            if not _all_here(value):
                return False
        elif (isinstance(value, Tensor) and not value.is_cpu) or (isinstance(value, torch.device) and value != _CPU):
            return False
    return True


def _asked(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], storages: set[int]) -> tuple[Any, torch.device]:
    """What torch says that `op` gives, on which device; the arguments' storages are added to `storages`."""
    on_meta = (op in known.ON_META or op.namespace == "vitkernels") and _all_here((*args, *kwargs.values()))
    if on_meta and not _operator(op).takes_tensors:
        kwargs = {"device": _CPU, **kwargs}
    elif "device" in kwargs:  # copies to a device have rules of their own
        on_meta = False
    with contextlib.nullcontext() if on_meta else _fakes():
        device = torch.device("meta") if on_meta else None
        given = _without_data(args, device, storages)
        named = {name: _without_data(value, device, storages) for name, value in kwargs.items()}
        return op(*given, **named), device or _CPU


def _learn(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recipe:
    made = known.results(op, args, kwargs)
    if made is not None:
        several = len(op._schema.returns) > 1
        parts: list[Any] = [None if one is None else (number, *one, 0) for number, one in enumerate(made)]
        sizes = [0 if one is None else prod(one[0]) * one[2].itemsize for one in made]
        return _recipe(parts, sizes, tuple if several else None)
    storages: set[int] = set()
    out, device = _asked(op, args, kwargs, storages)
    numbers: dict[int, int] = {}
    parts, sizes = [], []
    for one in out if isinstance(out, (list, tuple)) else [out]:
        if not isinstance(one, Tensor):
            parts.append(one)
            continue
        storage = one.untyped_storage()
        if storage._cdata in storages or one.device != device:
            return lambda args, kwargs: op(*args, **kwargs)
        if storage._cdata not in numbers:
            numbers[storage._cdata] = len(sizes)
            sizes.append(storage.nbytes())
        parts.append((numbers[storage._cdata], tuple(one.shape), one.stride(), one.dtype, one.storage_offset()))
    return _recipe(parts, sizes, type(out) if isinstance(out, (list, tuple)) else None)


def _recipe(parts: list[Any], sizes: list[int], kind: Any) -> Recipe:
    """Gives the parts, as a `kind` of list: tensors (storage, shape, stride, dtype, offset), and what is no tensor."""
    if kind is None and isinstance(parts[0], tuple):
        (_, shape, stride, dtype, offset), (nbytes,) = parts[0], sizes
        return lambda args, kwargs: make(shape, stride, dtype, nbytes, offset)

    def give(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        held = [_storage(size) for size in sizes]
        made = [_in_storage(held[p[0]], *p[1:]) if isinstance(p, tuple) else p for p in parts]
        return made[0] if kind is None else kind(made)

    return give


__all__ = ["gives_back", "is_hollow", "like", "make", "new", "refusing", "run"]
