"""Examines launches in a pool of worker processes that never run Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from queue import SimpleQueue

from vitbench.audit.job import Failed, Job
from vitbench.audit.workers.examine import Examined
from vitbench.audit.workers.process import Worker

_TOGETHER = 16  # launches that are disassembled in one call


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
    workers: SimpleQueue[Worker] = SimpleQueue()
    # Two workers at the same code would both compile it, so what is alike goes to one of them.
    alike: dict[str, list[int]] = {}
    for position, job in enumerate(jobs):
        alike.setdefault(job.likeness or str(position), []).append(position)
    groups = sorted(alike.values(), key=len, reverse=True)
    count = max(1, min(processes, len(groups)))
    counted = any(job.counted for job in jobs)
    if counted:
        Worker("vitbench.audit.workers.follow", interprets=True).prepare()  # for those that will ask it
    pool = [Worker("vitbench.audit.workers.compile", [str(cache)], triton_path) for _ in range(count)]
    for worker in pool:
        workers.put(worker)

    def run(together: list[list[int]]) -> dict[int, Examined | Failed | None]:
        results: dict[int, Examined | Failed | None] = {}
        with _borrowed(workers) as worker:
            if counted and len(together) > 1 and not stop():
                worker.ask([jobs[positions[0]] for positions in together])
            for position in chain.from_iterable(together):
                results[position] = None if stop() else worker.ask(jobs[position])
                if done:
                    done(position)
        return results

    try:
        with ThreadPoolExecutor(count) as threads:
            by_position = dict(chain.from_iterable(x.items() for x in threads.map(run, _batches(groups, count))))
            return [by_position[position] for position in range(len(jobs))]
    finally:
        for worker in pool:
            worker.close()


def _batches(groups: Sequence[list[int]], count: int) -> Iterator[list[list[int]]]:
    """What one worker prepares at once: less towards the end, so that all end together."""
    while groups:
        size = min(_TOGETHER, -(-len(groups) // (2 * count)))
        yield list(groups[:size])
        groups = groups[size:]


@contextmanager
def _borrowed(workers: SimpleQueue[Worker]) -> Iterator[Worker]:
    worker = workers.get()
    try:
        yield worker
    finally:
        workers.put(worker)
