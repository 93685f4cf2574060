"""What `vitkernels.fuse` does to a model, found once and kept for the next call. Imports no torch where it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitbench.fuse_report.setting import Answer, Setting
from vitbench.memory import pool, store
from vitbench.predict.table import packed, unpacked


@dataclass(frozen=True)
class Question:
    """As `pool` takes it."""

    setting: Setting

    @property
    def known(self) -> bool:
        return bool(store.read_file(_path(self.setting)))

    def ask(self) -> Answer:
        path = _path(self.setting)
        kept = store.read_file(path)
        if not kept:
            from vitbench.fuse_report import find  # imports torch

            found = find.find(self.setting)
            kept = vars(found) | {"kernels": packed(found.kernels), "within": packed(found.within)}
            store.write_file(path, kept)
        return Answer(**kept | {"kernels": unpacked(kept["kernels"]), "within": unpacked(kept["within"])})


def ask_all(settings: Sequence[Setting], told: Callable[[int, int], None]) -> list[Answer]:
    """In as many processes as there are processors; `told` hears how many of how many are done."""
    answers: list[Answer] = pool.ask([Question(one) for one in settings], lambda done: told(done, len(settings)))
    return answers


def _path(setting: Setting) -> Path:
    here = Path(__file__)
    code = [here, *(here.with_name(f"{name}.py") for name in ("setting", "find"))]
    code += [path for room in ("measure", "predict") for path in sorted(here.parents[1].joinpath(room).glob("*.py"))]
    return store.folder_of("fuse-report", code) / store.name_of(setting)


__all__ = ["ask_all"]
