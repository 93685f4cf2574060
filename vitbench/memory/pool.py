"""Asks for many predictions at once, in as many processes as there are processors. Imports no torch."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitbench.memory import predict
from vitbench.memory.predict import Answer
from vitbench.memory.setting import Limit, Setting
from vitbench.process import Process

#: Up to so many settings that are not known yet, starting processes takes longer than it saves.
FEW = 4


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


def ask(questions: Sequence[Question], told: Callable[[int], None] = lambda done: None) -> list[Answer]:
    """The answers in the order of the questions; `told` hears how many there are."""
    answers: dict[int, Answer] = {}
    groups: dict[Setting, list[int]] = {}  # one process answers all about a setting, which it then traces once
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
    questions: Sequence[Question],
    groups: Sequence[Sequence[int]],
    processes: int,
    answers: dict[int, Answer],
    told: Callable[[int], None],
) -> None:
    """Fills in answers; a question whose process died stays open."""
    waiting: queue.SimpleQueue[Sequence[int]] = queue.SimpleQueue()
    for group in groups:
        waiting.put(group)

    def serve() -> None:
        with Process([sys.executable, "-m", "vitbench.memory.worker"], asked=True) as process:
            while True:
                try:
                    group = waiting.get_nowait()
                except queue.Empty:
                    return
                for number in group:
                    process.say(questions[number])
                    try:
                        answers[number] = process.hear()
                    except EOFError:
                        return
                    told(len(answers))

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


__all__ = ["FEW", "Question", "ask"]
