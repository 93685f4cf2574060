"""A model without its data: the same modules around other tensors, run without computing anything."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

from vitbench.trace import hollow, known

Result = TypeVar("Result")


def replace_tensors(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `model` in which every tensor t (parameter, buffer or plain attribute of a module) is make(t).

    A tensor that is used twice is replaced once. `model` is left as it is, and none of its data is copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(make(parameter), parameter.requires_grad)
        for value in (*module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = make(value)
    return _copied(model, memo)


_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.Size, FunctionType, BuiltinFunctionType})
_COPYING = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")


@cache
def _copies_itself(kind: Any) -> bool:
    own = [name for name in _COPYING if getattr(kind, name, None) is not getattr(nn.Module, name, None)]
    # That of torch's layers adds what files of older versions lack.
    return bool(own) and not (own == ["__setstate__"] and kind.__setstate__.__module__.startswith("torch.nn.modules."))


def _never_changes(value: Any) -> bool:
    """Whether copy.deepcopy gives what is as good as the value itself."""
    if type(value) is tuple:
        return all(map(_never_changes, value))
    kind: Any = type(value)
    if getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        return all(_never_changes(getattr(value, one.name)) for one in fields(kind))
    return kind in _PLAIN


def _copied(module: nn.Module, memo: dict[int, Any]) -> Any:
    """As copy.deepcopy, which looks at every number and empty dictionary of every module and takes far longer."""
    if id(module) in memo:
        return memo[id(module)]
    kind: Any = type(module)
    if _copies_itself(kind):
        return copy.deepcopy(module, memo)
    made = memo[id(module)] = kind.__new__(kind)
    attributes = vars(made)
    for name, value in vars(module).items():
        if type(value) in _PLAIN:
            attributes[name] = value
        elif name == "_modules":
            attributes[name] = {key: None if one is None else _copied(one, memo) for key, one in value.items()}
        elif name in ("_parameters", "_buffers"):
            attributes[name] = {key: None if one is None else memo[id(one)] for key, one in value.items()}
        elif type(value) in (dict, set, OrderedDict) and not value:
            attributes[name] = type(value)()
        else:
            attributes[name] = value if _never_changes(value) else copy.deepcopy(value, memo)
    return made


class Unwritten(TorchDispatchMode):
    """A mode in which nothing is written into parameters: what initialises them is left out, as nobody will read them.

    On the meta device it computes nothing and yet takes torch's slowest way, of a real model it is most of the work and
    all of its memory: pages that nobody writes are never taken. What writes through `.data` is left out as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, Any] = {}  # of parameters; held, so that no address is used again

    def __enter__(self) -> Unwritten:
        self._hook = register_module_parameter_registration_hook(self._register)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._hook.remove()
        self._storages.clear()

    def _register(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if type(parameter) is nn.Parameter:
            storage = parameter.untyped_storage()
            self._storages[storage._cdata] = storage

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # nothing is compiled meanwhile, and asking imports what would
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and hollow.gives_back(func) and self._is_parameter(args[0]):
            return args[0]
        return func(*args, **(kwargs or {}))

    def _is_parameter(self, written: Any) -> bool:
        return type(written) is nn.Parameter or (
            type(written) is Tensor and written.untyped_storage()._cdata in self._storages
        )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What fake tensors cannot do raises, where torch would log a traceback too."""
    log = logging.getLogger(FakeTensorMode.__module__)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def fakes(among_others: bool = False) -> Iterator[None]:
    """Tensors are fake, all or among others."""
    with quietly(), FakeTensorMode(allow_non_fake_inputs=among_others):
        yield


def run_fake(model: nn.Module, shape: Sequence[int], call: Callable[[nn.Module, Tensor], Result]) -> Result:
    """`call(skeleton, x)` with a copy of `model` and an input of `shape`, both on the CPU without data.

    They are hollow, for a `call` that leaves operators to `hollow.run`. What a model cannot do with those is tried on
    fake tensors, which know numbers that a model makes itself, and then on the meta device.

    Raises: what the fake model raised, where none can.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())

    def run(make: Callable[[Any, Any, torch.dtype], Tensor]) -> Result:
        skeleton = replace_tensors(model, lambda t: make(t.shape, t.stride(), t.dtype))
        return call(skeleton, make(tuple(shape), known.strides(tuple(shape)), dtype))

    with contextlib.suppress(Exception), quietly(), hollow.refusing():
        return run(hollow.new)
    try:
        with fakes(among_others=True):
            return run(lambda size, step, kind: torch.empty_strided(size, step, dtype=kind, device="cpu"))
    except Exception as problem:
        with torch.device("meta"):
            try:
                return run(lambda size, step, kind: torch.empty_strided(size, step, dtype=kind, device="meta"))
            except Exception:
                raise problem from None


@cache
def is_composite(op: Any) -> bool:
    """Whether the CPU runs `op` as a sequence of others; such an operator comes whole under inference_mode."""
    has_kernel = partial(torch._C._dispatch_has_kernel_for_dispatch_key, op.name())
    return op.namespace == "aten" and has_kernel("CompositeImplicitAutograd") and not has_kernel("CPU")


__all__ = ["Unwritten", "fakes", "is_composite", "quietly", "replace_tensors", "run_fake"]
