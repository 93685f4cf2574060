"""A pytest plugin that appends each test's outcome to a CSV at once and leaves out the tests that have one already.

Loaded with `-p vitbench.certify.recorder --record-to FILE`; `--record-shard I/N` takes every Nth test from the Ith on.
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

COLUMNS = ("test", "outcome", "seconds", "reason")
PLANNED, PASSED, FAILED, SKIPPED = "planned", "passed", "failed", "skipped"


@dataclass(frozen=True)
class Record:
    """One test; `outcome` is PLANNED until it has run."""

    test: str
    outcome: str
    seconds: str
    reason: str


def read(path: Path) -> dict[str, Record]:
    """The last record of each test; a line that was cut short is none."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.reader(handle) if len(row) == len(COLUMNS) and tuple(row) != COLUMNS]
    return {row[0]: Record(*row) for row in rows}


def append(path: Path, records: list[Record]) -> None:
    """Adds records in one write, so that several processes can share the file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        writer.writerow(COLUMNS)
    writer.writerows([r.test, r.outcome, r.seconds, " ".join(r.reason.split())[:300]] for r in records)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text.getvalue().encode())
    finally:
        os.close(descriptor)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-to", type=Path, required=True)
    parser.addoption("--record-shard", default="0/1")


def pytest_configure(config: pytest.Config) -> None:
    index, count = map(int, config.getoption("--record-shard").split("/"))
    config.pluginmanager.register(Recorder(config.getoption("--record-to"), index, count))


class Recorder:
    """Chooses the tests and writes what becomes of them."""

    def __init__(self, path: Path, index: int, count: int) -> None:
        self._path, self._index, self._count = path, index, count
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        known = read(self._path)
        mine = items[self._index :: self._count]
        todo = [item for item in mine if item.nodeid not in known or known[item.nodeid].outcome == PLANNED]
        fresh = [Record(item.nodeid, PLANNED, "", "") for item in todo if item.nodeid not in known]
        if fresh:
            append(self._path, fresh)
        left_out = set(items) - set(todo)
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = todo

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            append(self._path, [Record(report.nodeid, FAILED, "", "cannot be collected: " + _last_line(report))])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        reports = self._reports[report.nodeid]
        reports.append(report)
        if report.when != "teardown":
            return
        seconds = f"{sum(one.duration for one in reports):.2f}"
        worst = next((one for one in reports if one.failed), None) or next(
            (one for one in reports if one.skipped), None
        )
        outcome = PASSED if worst is None else FAILED if worst.failed else SKIPPED
        reason = "" if worst is None else _last_line(worst)
        append(self._path, [Record(report.nodeid, outcome, seconds, reason)])
        del self._reports[report.nodeid]


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Where it is wrong, as pytest's short summary says it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message)
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2])
    lines = [line.strip() for line in str(report.longrepr).splitlines() if line.strip()]
    return lines[-1] if lines else ""


__all__ = ["COLUMNS", "FAILED", "PASSED", "PLANNED", "SKIPPED", "Record", "append", "read"]
