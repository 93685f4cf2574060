"""Torch's compiler, which takes seconds to import, and which little needs that is traced."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

_NAME = "torch._dynamo"
T = TypeVar("T")


@contextmanager
def absent() -> Iterator[None]:
    """Meanwhile it is not imported by who only tells it to leave something alone: optimizers, torch's descriptions of
    operators. Who wants more of it gets it."""
    if _NAME in sys.modules:
        yield
        return
    nobody = ModuleType(_NAME)
    vars(nobody).update(graph_break=lambda: None, disable=lambda run, *args, **options: run, __getattr__=_attribute)
    sys.modules[_NAME] = nobody
    try:
        yield
    finally:
        if sys.modules[_NAME] is nobody:
            del sys.modules[_NAME]


def load() -> None:
    """Imports it, in a thread of its own: frames stay behind, and in those of this one there are tensors."""
    if not hasattr(sys.modules.get(_NAME), "__path__"):
        sys.modules.pop(_NAME, None)
        thread = threading.Thread(target=importlib.import_module, args=(_NAME,))
        thread.start()
        thread.join()


def retried(run: Callable[[], T]) -> T:
    """What `run` gives; it runs again, with the compiler, where it imports a module of that."""
    try:
        return run()
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(f"{_NAME}."):
            raise
        load()
        return run()


def _attribute(name: str) -> Any:
    if name.startswith("__"):  # what is asked of every module
        raise AttributeError(name)
    load()
    return getattr(sys.modules[_NAME], name)


__all__ = ["absent", "load", "retried"]
