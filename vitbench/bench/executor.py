"""One worker process on this machine: starts it, feeds it, replaces it when it dies or hangs."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from vitbench import warm
from vitbench.bench.messages import Group, Message, Phase, Result
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.process import Process, python_environment

Messages = queue.Queue[Message | None]


@dataclass(frozen=True)
class WorkerLost(Exception):
    """The worker died or ran out of time; `case` is the id it was at, None when it was at several."""

    status: str
    reason: str
    case: str | None


class LocalExecutor:
    """Runs groups of cases in a worker process that lives as long as it is healthy.

    Args:
        options: how to measure; its time limit is that of any one case, from build to row.
        on_phase: called in another thread with each phase the worker reports.
    """

    def __init__(self, options: SweepOptions, on_phase: Callable[[Phase], None]) -> None:
        self._options = options
        self._on_phase = on_phase
        self._process: Process | None = None
        self._messages: Messages = queue.Queue()

    def submit(self, cases: Sequence[Case]) -> Future[list[Result]]:
        """The group's results, too few when a case broke the device, or WorkerLost; one group runs at a time."""
        future: Future[list[Result]] = Future()
        threading.Thread(target=self._run, args=(list(cases), future), daemon=True).start()
        return future

    def _start(self) -> Process:
        if self._process is not None:
            self._process.end()
        self._messages = queue.Queue()
        # Ctrl-C reaches the parent alone, which then ends the worker.
        process = Process(["vitbench.bench.worker"], environment=python_environment(), asked=True, start=warm.start)
        threading.Thread(target=self._listen, args=(process, self._messages), daemon=True).start()
        return process

    @staticmethod
    def _listen(process: Process, messages: Messages) -> None:
        with contextlib.suppress(EOFError):
            while True:
                messages.put(process.hear())
        messages.put(None)

    def _run(self, cases: list[Case], future: Future[list[Result]]) -> None:
        try:
            future.set_result(self._collect(cases))
        except Exception as error:
            future.set_exception(error)

    def _collect(self, cases: list[Case]) -> list[Result]:
        if self._process is None or self._process.code() is not None:
            self._process = self._start()
        process = self._process
        limit = self._options.time_limit
        alone = cases[0].id if len(cases) == 1 else None
        at = alone
        process.say(Group(cases, self._options))
        end = time.monotonic() + limit * len(cases)
        phase_end = end
        results: list[Result] = []
        while True:
            try:
                message = self._messages.get(timeout=max(0.0, min(end, phase_end) - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise WorkerLost("timeout", f"took longer than --time-limit {limit:g} s", at) from None
            if message is None:
                raise WorkerLost("crashed", f"worker: {process.how_it_ended()}", at)
            if isinstance(message, Phase):
                at = message.case or alone
                phase_end = time.monotonic() + limit if message.case else end
                self._on_phase(message)
            elif isinstance(message, Result):
                results.append(message)
            else:
                if message.poisoned:
                    self.close()
                return results

    def kill(self) -> None:
        """Ends the worker and whatever it started, at once."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def close(self) -> None:
        """Lets the worker end by itself, or ends it."""
        if self._process is not None:
            self._process.close()
            self._process = None
