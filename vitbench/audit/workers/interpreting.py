"""Triton's interpreter without its largest costs, none of which changes what a kernel computes or is checked for.

It makes the language interpret anew at every call of a function, looks by six operations more for overflow of each
32-bit integer operation, which it reports in debug mode only, makes types anew that it has made before, and works out
anew what an operation does to operands of types that it has seen (`replaying.py`).
Private names of Triton 3.6 to 3.8.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from vitbench.audit.workers.replaying import replaying

_patch = interpreter._patch_lang
_patched: set[ModuleType] = set()
_seen: set[Any] = set()
_numpy_types: dict[str, np.dtype[Any]] = {}
_numpy_type = interpreter._get_np_dtype
_block_types: dict[tuple[str, tuple[int, ...]], Any] = {}


class _Kept:
    """What undoes the patch, and does not."""

    def restore(self) -> None: ...


def _patch_once(function: Any) -> _Kept:
    if function not in _seen:
        _seen.add(function)
        visible = {module for module in (tl, tl.core) if any(one is module for one in function.__globals__.values())}
        if not visible <= _patched:
            _patch(function)
            _patched.update(visible)
    return _Kept()


def _patch_member(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    scope.set_attr(obj, name, replaying(member))


def _kept_numpy_type(kind: Any) -> np.dtype[Any]:
    scalar = kind.element_ty if isinstance(kind, tl.block_type) else kind
    if scalar.name not in _numpy_types:
        _numpy_types[scalar.name] = _numpy_type(scalar)
    return _numpy_types[scalar.name]


def _kept_block_type(scalar: Any, shape: Any) -> Any:
    key = (scalar.name, tuple(int(size) for size in shape))
    if key not in _block_types:
        _block_types[key] = tl.block_type(scalar, list(key[1]))
    return _block_types[key]


def interpret_for_good() -> None:
    """In this process the language modules that kernels see stay patched: nothing can be compiled here any more."""
    interpreter._patch_lang = _patch_once
    interpreter._patch_attr = _patch_member
    interpreter._get_np_dtype = _kept_numpy_type
    interpreter.InterpreterBuilder.get_block_ty = lambda _, scalar, shape: _kept_block_type(scalar, shape)
    tl.block_type.with_element_ty = lambda block, scalar: _kept_block_type(scalar, block.shape)
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)
