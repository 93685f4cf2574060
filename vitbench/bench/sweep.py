"""Cases to executor to CSV: resumes, keeps every planned case as a row, shows progress. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from vitbench import selection
from vitbench.bench.executor import LocalExecutor, WorkerLost
from vitbench.bench.messages import Result
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case, group
from vitbench.catalog import format_resolution
from vitbench.errors import InputError
from vitbench.results import journal
from vitbench.results.row import SCHEMA, Environment, Found, Published, Row, Setup, changes, environment_of


class Progress(Protocol):
    """What a sweep tells while it runs; see progress.py."""

    def phase(self, case: str | None, what: str) -> None: ...

    def row(self, row: Row, done: int, total: int, seconds_left: float | None) -> None: ...

    def note(self, text: str) -> None: ...

    def tick(self) -> None: ...


@dataclass
class Summary:
    """How a sweep ended: its cases' rows in plan order, whether it was interrupted, what the deadline cut off."""

    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False
    cut_off: list[Case] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.status not in ("ok", "unsupported")]


def row_of(case: Case, found: Found, environment: Environment, setup: Setup, started_at: str) -> Row:
    """The case's row: what it is, where it ran, what is published, what was found out."""
    entry = selection.entry(case.model)
    return Row(
        schema=SCHEMA,
        case=case.id,
        status=found.status,
        reason=found.reason,
        model=case.model,
        family=entry.family,
        impl=case.impl,
        mode=case.mode,
        dtype=case.dtype,
        layout=case.layout,
        device=case.device,
        resolution=format_resolution(case.resolution),
        batch=case.batch,
        counts=found.counts,
        published=Published(entry.top1, entry.coco_ap, entry.training_data or None, entry.source or None),
        speed=found.speed,
        compile_s=found.compile_s,
        memory=found.memory,
        energy=found.energy,
        health=found.health,
        verified=found.verified,
        utilisation=found.utilisation,
        setup=setup,
        environment=environment,
        started_at=started_at,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _resume(path: Path, now: Row, fresh: bool, progress: Progress) -> dict[str, Row]:
    """The rows that are already there, by case id; `now` is one that would be added.

    Raises: InputError when they come from another environment or schema.
    """
    if fresh:
        aside = journal.set_aside(path)
        if aside is not None:
            progress.note(f"kept the old results as {aside}")
        return {}
    if not path.exists():
        return {}
    rows = journal.read(path)
    if rows:
        changed = changes(environment_of(rows[-1]), environment_of(now))
        if changed:
            raise InputError(
                f"{path} was measured elsewhere or otherwise ({'; '.join(changed)}): "
                "give --fresh to begin anew (the old file is kept) or another --out"
            )
    return {row.case: row for row in rows}


def run(
    cases: Sequence[Case],
    path: Path,
    environment: Environment,
    options: SweepOptions,
    progress: Progress,
    deadline: float | None = None,
) -> Summary:
    """Measures every case that `path` does not hold yet and appends its row as soon as it is known.

    Args:
        environment: what is measured on and with; see measure.device.environment.
        deadline: time.monotonic() at which to stop; what runs then leaves no row, so that another call measures it.

    Raises: InputError when `path` cannot be written or holds rows of another environment;
        OSError when the disk fails, with every row so far safe.
    """
    with journal.locked(path):
        example = row_of(cases[0], Found(), environment, options.setup, _now())
        done = _resume(path, example, options.fresh, progress)
        todo = [case for case in cases if case.id not in done]
        if len(todo) < len(cases):
            progress.note(f"{len(cases) - len(todo)} of {len(cases)} cases are already in {path}")
        summary = Summary()
        executor = LocalExecutor(options, lambda phase: progress.phase(phase.case, phase.what))

        def keep(case: Case, result: Result, started_at: str) -> Row:
            row = row_of(case, result.found, environment, options.setup, started_at)
            journal.append(path, row, result.samples_ms)
            return row

        try:
            _run_groups(group(todo), executor, keep, done, len(cases), progress, deadline)
            executor.close()
        except _OutOfTime as up:
            summary.cut_off = up.cases
            progress.note(f"the time is up with {sum(case.id in done for case in cases)} of {len(cases)} cases done")
        except KeyboardInterrupt:
            summary.interrupted = True
        finally:
            executor.kill()
        summary.rows = [done[case.id] for case in cases if case.id in done]
        return summary


class _OutOfTime(Exception):
    """The deadline has passed while `cases` were measured."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = cases


def _run_groups(
    waiting: list[list[Case]],
    executor: LocalExecutor,
    keep: Callable[[Case, Result, str], Row],
    done: dict[str, Row],
    total: int,
    progress: Progress,
    deadline: float | None,
) -> None:
    start, measured = time.monotonic(), 0
    while waiting:
        cases = waiting.pop(0)
        started_at = _now()
        try:
            results = _wait(executor, cases, progress, deadline)
        except WorkerLost as lost:
            if lost.case is None:
                # Nobody knows whose fault it was: each is tried alone.
                waiting[:0] = [[case] for case in cases]
                continue
            rest = [case for case in cases if case.id != lost.case]
            if rest:
                waiting.insert(0, rest)
            results = [Result(lost.case, Found(lost.status, lost.reason))]
        else:
            told = {result.case for result in results}
            rest = [case for case in cases if case.id not in told]
            assert told or len(rest) > 1, "a case that is alone has a row"
            # One of them broke the device for its process; where nobody knows which, each is tried alone.
            waiting[:0] = [rest] if rest and told else [[case] for case in rest]
        by_id = {case.id: case for case in cases}
        for result in results:
            row = done[result.case] = keep(by_id[result.case], result, started_at)
            measured += 1
            left = total - len(done)
            per_case = (time.monotonic() - start) / measured
            progress.row(row, len(done), total, left * per_case if left else None)


def _wait(executor: LocalExecutor, cases: list[Case], progress: Progress, deadline: float | None) -> list[Result]:
    end = float("inf") if deadline is None else deadline
    if time.monotonic() >= end:
        raise _OutOfTime([])
    future = executor.submit(cases)
    while True:
        try:
            return future.result(timeout=0.25)
        except FutureTimeout:
            if future.done():
                raise
            if time.monotonic() >= end:
                raise _OutOfTime(cases) from None
            progress.tick()
