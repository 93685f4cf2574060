"""A model that hangs, crashes, takes all memory, prints or computes rubbish costs its own row, and no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.vitbench.faults.faulty import STICKY
from tests.vitbench.faults.problems import CASES, QUICK, inject, measured
from vitbench.results import journal
from vitbench.results.row import TABLE

fault = pytest.mark.fault


@pytest.mark.parametrize(("how", "limit", "status", "reason", "workers"), [
    pytest.param(
        "hang", 20.0, "timeout", "took longer than --time-limit 20 s", 2,
        marks=[
            pytest.mark.slow_fault,
            fault("hang in the model", "a forward pass that never returns and ignores SIGTERM",
                  "the sweep goes on; the row says timeout"),
        ],
    ),
    pytest.param(
        "memory", 300.0, "oom", "can't allocate memory", 1,
        marks=fault("out of host memory", "RLIMIT_AS: allocating fails in a forward pass",
                    "the sweep goes on; the row says oom"),
    ),
    pytest.param(
        "sticky", 300.0, "error", STICKY, 2,
        marks=fault("CUDA-like sticky error", "an error after which nothing runs in the process any more",
                    "the sweep goes on in a new worker; the row says error"),
    ),
    pytest.param(
        "segfault", 300.0, "crashed", "killed by SIGSEGV", 2,
        marks=fault("segmentation fault", "a read of address 0, behind last words that are no text",
                    "the sweep goes on; the row says crashed"),
    ),
    pytest.param(
        "nan", 300.0, "incorrect", "infinities or NaN", 1,
        marks=fault("NaN output", "a forward pass that returns NaN",
                    "the sweep goes on; the row says incorrect and has no time"),
    ),
    pytest.param(
        "binary", 300.0, "ok", "", 1,
        marks=fault("binary on stdout", "bytes that are no text, and a forged message of the worker",
                    "every row, as without it"),
    ),
])  # fmt: skip
def test_a_fault_costs_its_own_row(
    how: str, limit: float, status: str, reason: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = inject(monkeypatch, how)
    path = tmp_path / "a.csv"
    rows = measured(path, options=dataclasses.replace(QUICK, time_limit=limit))
    assert [row.case for row in rows] == [case.id for case in CASES]
    assert TABLE.format(journal.read(path)) == TABLE.format(rows)
    assert [row.status for row in rows] == ["ok", status, "ok"]
    assert reason in rows[1].reason
    assert rows[1].reason.isprintable() or not rows[1].reason
    assert [row.speed.img_per_s is not None for row in rows] == [True, status == "ok", True]
    assert list(journal.read_samples(path)) == [row.case for row in rows if row.status == "ok"]
    assert len(started) == workers
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
