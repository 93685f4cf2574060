"""What a model runs, traced once and kept for the next call. Imports no torch where it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vitbench.memory import pool, store
from vitbench.predict.setting import Answer, Setting
from vitbench.predict.table import packed, unpacked

#: What decides an answer, beside what decides a prediction of memory.
_CODE = [
    Path(__file__).with_name(f"{name}.py")
    for name in ("ask", "find", "fusion", "kernels", "operators", "setting", "table")
]


@dataclass(frozen=True)
class Question:
    """As `pool` takes it."""

    setting: Setting

    @cached_property
    def _kept(self) -> dict[str, Any]:
        return store.read_file(_path(self.setting))

    @property
    def known(self) -> bool:
        return bool(self._kept)

    def ask(self) -> Answer:
        return _unpacked(self._kept) if self.known else ask(self.setting)


def ask(setting: Setting) -> Answer:
    """From what was kept, or traced anew. What cannot be traced is an answer with the reason, not an exception."""
    path = _path(setting)
    kept = store.read_file(path)
    if not kept:
        from vitbench.predict import find  # imports torch

        kept = _packed(find.find(setting))
        store.write_file(path, kept)
    return _unpacked(kept)


def ask_all(settings: Sequence[Setting], told: Callable[[int, int], None]) -> list[Answer]:
    """In as many processes as there are processors; `told` hears how many of how many are done."""
    answers: list[Answer] = pool.ask([Question(one) for one in settings], lambda done: told(done, len(settings)))
    return answers


def _packed(answer: Answer) -> dict[str, Any]:
    return {
        "parameters": answer.parameters,
        "family": answer.family,
        "memory": answer.memory,
        "reason": answer.reason,
        "kernels": packed(answer.kernels),
    }


def _unpacked(kept: dict[str, Any]) -> Answer:
    memory = tuple((constant, slope) for constant, slope in kept["memory"])
    return Answer(unpacked(kept["kernels"]), kept["parameters"], kept["family"], memory, kept["reason"])


def folder() -> Path:
    return store.folder_of("predict", _CODE)


def _path(setting: Setting) -> Path:
    return folder() / store.name_of(setting)


__all__ = ["Question", "ask", "ask_all", "folder"]
