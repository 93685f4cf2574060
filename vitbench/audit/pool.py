"""Examines launches in a pool of worker processes that never run Triton's interpreter."""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from vitbench.audit.examine import Examined
from vitbench.audit.job import Failed, Job


def default_cache() -> Path:
    """Where machine code is kept between runs: `$VITBENCH_CACHE` or the user's cache folder."""
    root = os.environ.get("VITBENCH_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "vitbench" / "audit"


def examine_all(
    jobs: Sequence[Job],
    processes: int = 2,
    cache: Path | None = None,
    triton_path: str | None = None,
    done: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Examined | Failed | None]:
    """Compile and count every job, in order.

    Args:
        processes: how many work at once.
        cache: folder of finished compilations; default `default_cache()`.
        triton_path: a folder holding another triton package, put first on the workers' path.
        done: called with the job's position after each.
        stop: asked before each job whether to begin no more.

    Returns: one result per job, None where it was not begun; a job that kills its worker is a `Failed` and the next
        gets a fresh worker.
    """
    cache = cache or default_cache()
    workers: SimpleQueue[_Worker] = SimpleQueue()
    # Two workers at the same code would both compile it, so what is alike goes to one of them.
    alike: dict[str, list[int]] = {}
    for position, job in enumerate(jobs):
        alike.setdefault(job.likeness or str(position), []).append(position)
    groups = sorted(alike.values(), key=len, reverse=True)
    count = max(1, min(processes, len(groups)))
    pool = [_Worker(cache, triton_path) for _ in range(count)]
    for worker in pool:
        workers.put(worker)

    def run(positions: list[int]) -> list[Examined | Failed | None]:
        results: list[Examined | Failed | None] = []
        with _borrowed(workers) as worker:
            for position in positions:
                results.append(None if stop() else worker.ask(jobs[position]))
                if done:
                    done(position)
        return results

    try:
        with ThreadPoolExecutor(count) as threads:
            by_position = {
                position: result
                for positions, results in zip(groups, threads.map(run, groups), strict=True)
                for position, result in zip(positions, results, strict=True)
            }
            return [by_position[position] for position in range(len(jobs))]
    finally:
        for worker in pool:
            worker.close()


@contextmanager
def _borrowed(workers: SimpleQueue[_Worker]) -> Iterator[_Worker]:
    worker = workers.get()
    try:
        yield worker
    finally:
        workers.put(worker)


class _Worker:
    """One compiling process, started at its first job and again after a crash."""

    def __init__(self, cache: Path, triton_path: str | None) -> None:
        self.command = [sys.executable, "-P", "-m", "vitbench.audit.worker", str(cache)]
        path = [triton_path] if triton_path else []
        self.environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        self.environment["PYTHONPATH"] = os.pathsep.join(path + [entry or os.getcwd() for entry in sys.path])
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: IO[Any] | None = None

    def ask(self, job: Job) -> Examined | Failed:
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
            result: Examined | Failed = pickle.loads(base64.b64decode(line))
            return result
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
