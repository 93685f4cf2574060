"""Processes that answer jobs: a line in (base64 of a pickle), a line out."""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

from vitbench.audit.job import Failed, Job


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
        self.command = [sys.executable, "-P", "-m", module, *arguments]
        path = [triton_path] if triton_path else []
        self.environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        if interprets:
            self.environment["TRITON_INTERPRET"] = "1"
        self.environment["PYTHONPATH"] = os.pathsep.join(path + [entry or os.getcwd() for entry in sys.path])
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: IO[Any] | None = None

    def ask(self, job: Job) -> Any:
        """The answer to a job; `Failed` when the process ended instead of giving one."""
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=self.environment
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(base64.b64encode(pickle.dumps(job)) + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if line:
            return pickle.loads(base64.b64decode(line))
        code = self.process.wait()
        return Failed(f"the compiling process ended with code {code}", self._last_words())

    def _last_words(self) -> str:
        if self.errors is None:
            return ""
        self.errors.seek(0)
        text: str = self.errors.read().decode(errors="replace")
        return text[-4000:]

    def close(self) -> None:
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process.wait()
            self.process = None
        if self.errors is not None:
            self.errors.close()
            self.errors = None
