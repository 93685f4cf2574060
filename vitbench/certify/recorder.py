"""A pytest plugin that appends each test's start and outcome to a CSV at once and leaves out the tests that have one.

Loaded with `-p vitbench.certify.recorder --record-to FILE`; `--record-shard I/N` takes every Nth test from the Ith on.
A test that breaks the accelerator for its process fails, and the process ends with the code BROKEN: its successors need
a new one.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vitbench.results import lines
from vitbench.results.table import Table

PLANNED, STARTED, PASSED, FAILED, SKIPPED = "planned", "started", "passed", "failed", "skipped"
#: Without an outcome.
OPEN = (PLANNED, STARTED)
#: Exit code of a process whose accelerator cannot be used any more.
BROKEN = 70


@dataclass(frozen=True)
class Record:
    """One test, or what is not a test ("::" is not in its name) and has failed.

    `outcome` is PLANNED, then STARTED with the process's id as the reason, until it has run.
    """

    test: str
    outcome: str
    seconds: str
    reason: str


TABLE = Table(Record, "a record of tests")


def read(path: Path) -> dict[str, Record]:
    """The last record of each test; a line that was cut short is none."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as handle:
        rows = [row for row in csv.reader(handle) if len(row) == len(TABLE.header) and tuple(row) != TABLE.header]
    return {row[0]: TABLE.parse(row) for row in rows}


def append(path: Path, records: list[Record]) -> None:
    """Adds records in one write, so that several processes can share the file."""
    short = [replace(record, reason=" ".join(record.reason.split())[:300]) for record in records]
    lines.append_shared(path, TABLE.format(short), TABLE.header_line)


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
        self._not_collected = {r.test for r in read(path).values() if "::" not in r.test and r.outcome == FAILED}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        known = read(self._path)
        mine = items[self._index :: self._count]
        todo = [item for item in mine if item.nodeid not in known or known[item.nodeid].outcome in OPEN]
        # What was cut off comes last: it may never end.
        todo.sort(key=lambda item: item.nodeid in known and known[item.nodeid].outcome == STARTED)
        fresh = [Record(item.nodeid, PLANNED, "", "") for item in todo if item.nodeid not in known]
        if fresh:
            append(self._path, fresh)
        left_out = set(items) - set(todo)
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = todo

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            append(self._path, [Record(report.nodeid, FAILED, "", "cannot be collected: " + _last_line(report))])
        elif report.nodeid in self._not_collected:
            append(self._path, [Record(report.nodeid, PASSED, "", "")])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        append(self._path, [Record(item.nodeid, STARTED, "", str(os.getpid()))])
        result = yield
        if broken := _broken_accelerator():
            if read(self._path)[item.nodeid].outcome != FAILED:
                append(self._path, [Record(item.nodeid, FAILED, "", f"broke the device: {broken}")])
            os._exit(BROKEN)  # what is left to free cannot be freed
        return result

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


def _broken_accelerator() -> str:
    """What the accelerator says when this process can use it no more, else ""."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Where it is wrong, as pytest's short summary says it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message)
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2])
    lines = [line.strip() for line in str(report.longrepr).splitlines() if line.strip()]
    return lines[-1] if lines else ""


__all__ = ["BROKEN", "FAILED", "OPEN", "PASSED", "PLANNED", "SKIPPED", "STARTED", "Record", "append", "read"]
