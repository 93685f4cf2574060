"""Child processes: what one is asked and answers, what it said last, how it ended, and its end when that is wanted.

Questions and answers are Python objects, pickled, a line each; both ends are this code.
"""

from __future__ import annotations

import base64
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any


def python_environment(*first: str | Path, without: Sequence[str] = ()) -> dict[str, str]:
    """This process's environment, for a Python that imports what this one does, from the folders `first` if it can.

    Args:
        without: beginnings of the names of variables that are left out.
    """
    path = dict.fromkeys([*map(str, first), *(entry or os.getcwd() for entry in sys.path)])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tuple(without))}
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}


class Process:
    """A command whose stderr is kept.

    Args:
        quiet: whether stdout is kept with stderr instead of going to the terminal.
        asked: whether it answers questions: its stdin and stdout are `say` and `hear`, on its side `answers`.
        apart: whether it is in a session of its own, so that Ctrl-C does not reach it and with it everything ends that
            it started.
        start: what starts it, `subprocess.Popen` or another with that interface.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        quiet: bool = False,
        asked: bool = False,
        apart: bool = True,
        start: Callable[..., Any] = subprocess.Popen,
    ) -> None:
        self._apart = apart
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = start(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.PIPE if asked else None,
            stdout=subprocess.PIPE if asked else self._log if quiet else None,
            stderr=self._log,
            text=True,
            start_new_session=apart,
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

    def wait(self, seconds: float | None = None) -> int | None:
        """`code` after at most so many seconds, or when it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)
        return self.code()

    def say(self, question: object) -> None:
        """Sends an object; to a process that has ended nothing, which `hear` then tells."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(_line(question))
            self._process.stdin.flush()

    def hear(self) -> Any:
        """The next object, waited for.

        Raises: EOFError when there will be none, as the process has ended.
        """
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
        except ValueError:  # another thread has ended it and closed the pipe
            line = ""
        if not line.endswith("\n"):
            raise EOFError
        return _object(line)

    def said(self) -> str:
        """All that it wrote to stderr, and to stdout where it is quiet."""
        log = self._log.fileno()  # where the process writes next is shared with it, so the file is not moved in
        return os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace")

    def how_it_ended(self) -> str:
        """Waits for it; the exit code or the signal, and the last line that it wrote."""
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += " (the kernel does that when memory runs out)"
        lines = [line.strip() for line in self.said().splitlines() if line.strip()]
        last = "".join(letter if letter.isprintable() else " " for letter in lines[-1][:300]) if lines else "no output"
        return f"{how}: {last.strip()}"

    def close(self, seconds: float = 5.0) -> None:
        """Tells it that there will be no more questions and lets it end by itself, or ends it after so many seconds."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what was still to be sent to a process that has ended
                self._process.stdin.close()
        self.wait(seconds)
        self.end()

    def kill(self) -> None:
        """Ends it at once where it still runs, and in a session of its own also what it started; its words are kept."""
        if self.code() is None:
            with contextlib.suppress(ProcessLookupError):
                if self._apart:
                    os.killpg(self.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """Kills it and lets go of all that is open for it."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._log.close()


def _line(message: object) -> str:
    return base64.b64encode(pickle.dumps(message)).decode("ascii") + "\n"


def _object(line: str) -> Any:
    return pickle.loads(base64.b64decode(line))


def answers() -> tuple[Callable[[object], None], Iterator[Any]]:
    """In the child: what sends an object to the parent, and the parent's objects until it has no more.

    From here on whatever libraries print goes to stderr, away from the answers.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(message: object) -> None:
        out.write(_line(message))

    return say, map(_object, sys.stdin)


__all__ = ["Process", "answers", "python_environment"]
