"""A model without its data: the same modules around other tensors, run without computing anything."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

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
    return copy.deepcopy(model, memo)


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

    What a fake model cannot do is tried on the meta device.

    Raises: what the fake model raised, where neither can.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
    try:
        with fakes(among_others=True):
            like = partial(torch.empty_strided, device="cpu")
            fake = replace_tensors(model, lambda t: like(t.shape, t.stride(), dtype=t.dtype))
            return call(fake, torch.empty(*shape, dtype=dtype, device="cpu"))
    except Exception as problem:
        with torch.device("meta"):
            meta = replace_tensors(model, lambda t: torch.empty_like(t, device="meta"))
            try:
                return call(meta, torch.empty(*shape, dtype=dtype))
            except Exception:
                raise problem from None


@cache
def is_composite(op: Any) -> bool:
    """Whether the CPU runs `op` as a sequence of others; such an operator comes whole under inference_mode."""
    has_kernel = partial(torch._C._dispatch_has_kernel_for_dispatch_key, op.name())
    return op.namespace == "aten" and has_kernel("CompositeImplicitAutograd") and not has_kernel("CPU")


__all__ = ["fakes", "is_composite", "quietly", "replace_tensors", "run_fake"]
