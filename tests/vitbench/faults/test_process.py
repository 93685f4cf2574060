"""Signals, clocks and compilers: the sweep ends when it should, and keeps what it has."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from tests.vitbench.faults.problems import CASES, GRID, QUICK, case, inject, measured
from vitbench.bench import sweep
from vitbench.results import journal
from vitbench.results.row import TABLE


def running(text: str) -> list[int]:
    """Processes whose command line has a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.slow_fault
@pytest.mark.fault(
    "a time limit during compile", "a C++ compiler under torch.compile that does not end",
    "the sweep goes on; the row says timeout; nothing that it started is left",
)  # fmt: skip
def test_a_compiler_that_hangs_ends_with_its_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "compiled"
    folder.mkdir()
    inject(monkeypatch, "slow_compiler", str(folder))
    cases = [case(impl="compile"), case()]
    rows = measured(tmp_path / "a.csv", cases, replace(QUICK, time_limit=30))
    assert [(row.case, row.status) for row in rows] == [(cases[0].id, "timeout"), (cases[1].id, "ok")]
    assert rows[0].speed.img_per_s is None
    assert (folder / "g++.called").exists()
    assert running(str(folder)) == []


@pytest.mark.fault(
    "clock set back", "the time of day goes back an hour whenever anybody asks for it, in the sweep and in its worker",
    "every row, every duration; a second run finds nothing to do",
)  # fmt: skip
def test_durations_do_not_follow_the_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Earlier(datetime):
        asked = 0

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            cls.asked += 1
            return datetime(2030, 1, 1, tzinfo=UTC) - timedelta(hours=cls.asked)

    monkeypatch.setattr(sweep, "datetime", Earlier)
    started = inject(monkeypatch, "set_clock_back")
    path = tmp_path / "a.csv"
    rows = measured(path)
    assert [row.status for row in rows] == ["ok"] * 3
    assert [row.started_at for row in rows] == sorted((str(row.started_at) for row in rows), reverse=True)
    for row in rows:
        assert 0 < row.speed.latency_ms_ci_low <= row.speed.latency_ms_p50 <= row.speed.latency_ms_ci_high < 1e5
    assert TABLE.format(measured(path)) == TABLE.format(rows)
    assert len(started) == 1


@pytest.mark.slow_fault
@pytest.mark.fault(
    "Ctrl-C twice", "SIGINT, and another a moment later", "every row so far; exit code 130 and no traceback"
)
def test_ctrl_c_twice_is_as_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    command = [sys.executable, "-m", "vitbench", "bench", *GRID, "--mode", "infer", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--min-time", "2", "--max-time", "2", "--out", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not (path.exists() and journal.read(path)):
            assert process.poll() is None
            time.sleep(0.02)
        rows = journal.read(path)
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in out + error
    assert journal.read(path)[: len(rows)] == rows
    assert len(rows) < len(CASES)
    assert not running(str(path))
