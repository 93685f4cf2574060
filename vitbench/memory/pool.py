"""Asks for many predictions at once, in as many processes as there are processors. Imports no torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vitbench import warm
from vitbench.memory import predict
from vitbench.memory.predict import Answer
from vitbench.memory.setting import Limit, Setting
from vitbench.process import Process, python_environment

#: Up to so many settings that are not known yet, starting processes takes longer than it saves.
FEW = 12


class Asked(Protocol):
    """What `ask` takes: it can be pickled, and those with the same setting go to the same process."""

    @property
    def setting(self) -> Any: ...

    @property
    def known(self) -> bool:
        """Whether its answer needs no process."""
        ...

    def ask(self) -> Any: ...


@dataclass(frozen=True)
class Question:
    """As the arguments of `predict.ask`."""

    setting: Setting
    batches: tuple[int, ...]
    workspace: int
    limits: tuple[Limit, ...] = ()

    def ask(self) -> Answer:
        return predict.ask(self.setting, self.batches, self.workspace, self.limits)

    @property
    def known(self) -> bool:
        return predict.is_known(self.setting, self.batches, self.workspace, self.limits)


def ask(questions: Sequence[Asked], told: Callable[[int], None] = lambda done: None) -> list[Any]:
    """The answers in the order of the questions; `told` hears how many there are."""
    answers: dict[int, Any] = {}
    groups: dict[Any, list[int]] = {}  # one process answers all about a setting, which it then traces once
    for number, question in enumerate(questions):
        if not question.known:
            groups.setdefault(question.setting, []).append(number)
    processes = min(os.cpu_count() or 1, len(groups) // 2)
    if len(groups) > FEW and processes > 1:
        _share_out(questions, list(groups.values()), processes, answers, told)
    for number, question in enumerate(questions):
        if number not in answers:
            answers[number] = question.ask()
            told(len(answers))
    return [answers[number] for number in range(len(questions))]


def _share_out(
    questions: Sequence[Asked],
    groups: Sequence[Sequence[int]],
    processes: int,
    answers: dict[int, Any],
    told: Callable[[int], None],
) -> None:
    """Fills in answers; a question whose process died stays open."""
    waiting: dict[str, list[Sequence[int]]] = {}
    for group in groups:
        waiting.setdefault(questions[group[0]].setting.model, []).append(group)
    one_takes = threading.Lock()

    def take(model: str) -> tuple[str, Sequence[int]] | None:
        """Settings of one model stay together, where what is known of one helps with the next."""
        with one_takes:
            if not waiting.get(model):
                model = max(waiting, key=lambda name: len(waiting[name]), default="")
            return (model, waiting[model].pop(0)) if waiting.get(model) else None

    def serve() -> None:
        model = ""
        with Process(["vitbench.memory.worker"], environment=python_environment(), asked=True, start=warm.start) as one:
            while taken := take(model):
                model, group = taken
                for number in group:
                    one.say(questions[number])
                    try:
                        answers[number] = one.hear()
                    except EOFError:
                        return
                    told(len(answers))

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


__all__ = ["FEW", "Asked", "Question", "ask"]
