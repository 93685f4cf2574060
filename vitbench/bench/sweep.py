"""Cases to executor to CSV: resumes, keeps every planned case as a row, shows progress. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from vitbench.bench import selection
from vitbench.bench.executor import Event, LocalExecutor, WorkerLost
from vitbench.bench.plan import Case, group
from vitbench.catalog import format_resolution
from vitbench.errors import InputError
from vitbench.results import journal
from vitbench.results.row import ENVIRONMENT, SCHEMA, Row, changes, environment_of


@dataclass(frozen=True)
class SweepOptions:
    """How to measure; batches above `measure_up_to` are predicted only, `graphs` replays steps as CUDA graphs."""

    time_limit: float = 600.0
    min_time: float = 0.5
    max_time: float = 15.0
    passes: tuple[str, ...] = ("latency", "memory", "energy")
    images: str = ""
    weights: str = ""
    fresh: bool = False
    measure_up_to: int | None = None
    graphs: bool = False

    def for_worker(self) -> dict[str, Any]:
        return {
            "min_time": self.min_time,
            "max_time": self.max_time,
            "passes": list(self.passes),
            "images": self.images,
            "weights": self.weights,
            "measure_up_to": self.measure_up_to,
            "graphs": self.graphs,
        }


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


def blank_row(case: Case, environment: dict[str, Any]) -> Row:
    """The case's row before anything is measured: what it is, where it runs, what is published."""
    entry = selection.entry(case.model)
    return Row(
        schema=SCHEMA,
        case=case.id,
        status="error",
        reason="",
        model=case.model,
        family=entry.family,
        impl=case.impl,
        mode=case.mode,
        dtype=case.dtype,
        layout=case.layout,
        device=case.device,
        resolution=format_resolution(case.resolution),
        batch=case.batch,
        top1=entry.top1,
        coco_ap=entry.coco_ap,
        training_data=entry.training_data or None,
        source=entry.source or None,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        **environment,
    )


def _resume(path: Path, environment: dict[str, Any], fresh: bool, progress: Progress) -> dict[str, Row]:
    """The rows that are already there, by case id.

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
        now = {name: environment.get(name) for name in ENVIRONMENT} | {"schema": SCHEMA}
        changed = changes(environment_of(rows[-1]), now)
        if changed:
            raise InputError(
                f"{path} was measured elsewhere or otherwise ({'; '.join(changed)}): "
                "give --fresh to begin anew (the old file is kept) or another --out"
            )
    return {row.case: row for row in rows}


def run(
    cases: Sequence[Case],
    path: Path,
    environment: dict[str, Any],
    options: SweepOptions,
    progress: Progress,
    deadline: float | None = None,
) -> Summary:
    """Measures every case that `path` does not hold yet and appends its row as soon as it is known.

    Args:
        environment: fields of Row that are the same for all cases; see measure.device.environment.
        deadline: time.monotonic() at which to stop; what runs then leaves no row, so that another call measures it.

    Raises: InputError when `path` cannot be written or holds rows of another environment;
        OSError when the disk fails, with every row so far safe.
    """
    with journal.locked(path):
        done = _resume(path, environment, options.fresh, progress)
        todo = [case for case in cases if case.id not in done]
        if len(todo) < len(cases):
            progress.note(f"{len(cases) - len(todo)} of {len(cases)} cases are already in {path}")
        summary = Summary()
        executor = LocalExecutor(
            options.for_worker(), options.time_limit, lambda event: progress.phase(event["case"], event["what"])
        )
        try:
            _run_groups(group(todo), executor, path, environment, done, len(cases), progress, deadline)
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
    path: Path,
    environment: dict[str, Any],
    done: dict[str, Row],
    total: int,
    progress: Progress,
    deadline: float | None,
) -> None:
    start, measured = time.monotonic(), 0
    while waiting:
        cases = waiting.pop(0)
        rows = {case.id: blank_row(case, environment) for case in cases}
        try:
            events = _wait(executor, cases, progress, deadline)
        except WorkerLost as lost:
            if lost.case is None:
                # Nobody knows whose fault it was: each is tried alone.
                waiting[:0] = [[case] for case in cases]
                continue
            rest = [case for case in cases if case.id != lost.case]
            if rest:
                waiting.insert(0, rest)
            events = [{"row": {"status": lost.status, "reason": lost.reason}, "case": lost.case}]
        else:
            told = {event["case"] for event in events}
            rest = [case for case in cases if case.id not in told]
            assert told or len(rest) > 1, "a case that is alone has a row"
            # One of them broke the device for its process; where nobody knows which, each is tried alone.
            waiting[:0] = [rest] if rest and told else [[case] for case in rest]
        for event in events:
            row = rows[event["case"]]
            for name, value in event["row"].items():
                setattr(row, name, value)
            journal.append(path, row, event.get("samples_ms", ()))
            done[row.case] = row
            measured += 1
            left = total - len(done)
            per_case = (time.monotonic() - start) / measured
            progress.row(row, len(done), total, left * per_case if left else None)


def _wait(executor: LocalExecutor, cases: list[Case], progress: Progress, deadline: float | None) -> list[Event]:
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
