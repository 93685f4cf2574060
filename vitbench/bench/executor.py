"""One worker process on this machine: starts it, feeds it, replaces it when it dies or hangs."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import IO, Any

from vitbench.bench.plan import Case

Event = dict[str, Any]


@dataclass(frozen=True)
class WorkerLost(Exception):
    """The worker died or ran out of time; `case` is the id it was at, None when it was at several."""

    status: str
    reason: str
    case: str | None


class LocalExecutor:
    """Runs groups of cases in a worker process that lives as long as it is healthy.

    Args:
        options: what the worker needs to know beside the cases; see worker.Options.
        time_limit: seconds that any one case may take from build to row.
        on_event: called in another thread with each phase the worker reports.
    """

    def __init__(self, options: dict[str, Any], time_limit: float, on_event: Callable[[Event], None]) -> None:
        self._options = options
        self._time_limit = time_limit
        self._on_event = on_event
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._stderr: IO[bytes] | None = None

    def submit(self, cases: Sequence[Case]) -> Future[list[Event]]:
        """The group's row events, too few when a case broke the device, or WorkerLost; one group runs at a time."""
        future: Future[list[Event]] = Future()
        threading.Thread(target=self._run, args=(list(cases), future), daemon=True).start()
        return future

    def _start(self) -> subprocess.Popen[str]:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._events = queue.Queue()
        # Its own session: Ctrl-C reaches the parent alone, which then ends the worker.
        process = subprocess.Popen(
            [sys.executable, "-m", "vitbench.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(process, self._events), daemon=True).start()
        return process

    @staticmethod
    def _read(process: subprocess.Popen[str], events: queue.Queue[Event | None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            events.put(json.loads(line))
        events.put(None)

    def _run(self, cases: list[Case], future: Future[list[Event]]) -> None:
        try:
            future.set_result(self._collect(cases))
        except Exception as error:
            future.set_exception(error)

    def _collect(self, cases: list[Case]) -> list[Event]:
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None
        at: str | None = cases[0].id if len(cases) == 1 else None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(
                json.dumps({"cases": [_as_json(c) for c in cases], "options": self._options}) + "\n"
            )
            self._process.stdin.flush()
        end = time.monotonic() + self._time_limit * len(cases)
        phase_end = end
        rows: list[Event] = []
        while True:
            try:
                event = self._events.get(timeout=max(0.0, min(end, phase_end) - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise WorkerLost("timeout", f"took longer than --time-limit {self._time_limit:g} s", at) from None
            if event is None:
                raise WorkerLost("crashed", self._last_words(), at)
            if event["event"] == "phase":
                at = event["case"] or (cases[0].id if len(cases) == 1 else None)
                phase_end = time.monotonic() + self._time_limit if event["case"] else end
                self._on_event(event)
            elif event["event"] == "row":
                rows.append(event)
            else:
                if event.get("poisoned"):
                    self.close()
                return rows

    def _last_words(self) -> str:
        """How the worker ended and the last line it wrote to stderr."""
        assert self._process is not None
        assert self._stderr is not None
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        if code == -signal.SIGKILL:
            how += " (the kernel does that when memory runs out)"
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        return f"worker {how}" + (f"; last line: {lines[-1].strip()[:300]}" if lines else "")

    def kill(self) -> None:
        """Ends the worker and whatever it started, at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Lets the worker end by itself, or ends it."""
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError, OSError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None


def _as_json(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in case.__slots__}
