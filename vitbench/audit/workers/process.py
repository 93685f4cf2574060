"""A process that answers jobs, whatever becomes of it at one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitbench import warm
from vitbench.audit.job import Failed, Job
from vitbench.process import Process, python_environment


class Worker:
    """A process that answers jobs, started at its first one and again after a crash.

    Args:
        module: what it runs, and with which arguments.
        triton_path: a folder holding another triton package, put first on its path.
        interprets: whether Triton's interpreter takes the place of the compiler there.
    """

    def __init__(
        self, module: str, arguments: Sequence[str] = (), triton_path: str | None = None, interprets: bool = False
    ) -> None:
        self._command = [module, *arguments]
        path = [triton_path] if triton_path else []
        self._environment = python_environment(*path, without=["TRITON_INTERPRET"])
        if interprets:
            self._environment["TRITON_INTERPRET"] = "1"
        self._process: Process | None = None

    def prepare(self) -> None:
        """Lets its imports begin, here and for the processes that will be started from here."""
        warm.prepare(self._command[0], self._environment)

    def ask(self, job: Job | Sequence[Job]) -> Any:
        """The answer to a job, or to a list of them; `Failed` when the process ended instead of giving one."""
        if self._process is not None and self._process.code() is not None:
            self.close()
        if self._process is None:
            self._process = Process(
                self._command, environment=self._environment, asked=True, apart=False, start=warm.start
            )
        self._process.say(job)
        try:
            return self._process.hear()
        except EOFError:
            how = self._process.how_it_ended()
            failed = Failed(f"the compiling process ended: {how}", self._process.said()[-4000:])
            self.close()
            return failed

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
