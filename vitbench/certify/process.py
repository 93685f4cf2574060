"""A stage's process of its own: what it said last, how it ended, and its end when the time is up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType


class Process:
    """A command in a session of its own, so that with it everything ends that it started; stderr is kept.

    Args:
        quiet: whether stdout goes where stderr goes instead of to the terminal.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        quiet: bool = False,
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        out = self._log if quiet else None
        self._process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=out, stderr=self._log, start_new_session=True
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def code(self) -> int | None:
        """Its exit code, below zero for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """`code` after at most so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
        return self.code()

    def how_it_ended(self) -> str:
        """The exit code or the signal, and the last line that it wrote to stderr."""
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{how}: {lines[-1] if lines else 'no output'}"

    def end(self) -> None:
        """Ends it and what it started, at once, where it still runs."""
        if self.code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()


__all__ = ["Process"]
