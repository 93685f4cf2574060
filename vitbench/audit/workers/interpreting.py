"""Triton's interpreter without its largest cost: it makes the language interpret anew at every call of a function."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_patch = interpreter._patch_lang
_patched: set[ModuleType] = set()


class _Kept:
    """What undoes the patch, and does not."""

    def restore(self) -> None: ...


def _patch_once(function: Any) -> _Kept:
    seen = {module for module in (tl, tl.core) if any(value is module for value in function.__globals__.values())}
    if not seen <= _patched:
        _patch(function)
        _patched.update(seen)
    return _Kept()


def interpret_for_good() -> None:
    """In this process the language modules that kernels see stay patched: nothing can be compiled here any more."""
    interpreter._patch_lang = _patch_once
