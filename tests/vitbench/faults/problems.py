"""What tests of faults share: a sweep of three small cases, the second of which meets the fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vitbench.faults.faulty import IMAGES
from vitbench.bench import executor, sweep
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.measure import device as devices
from vitbench.results.row import Row

QUICK = SweepOptions(min_time=0.01, max_time=0.05, time_limit=300, passes=("latency",))
#: How the command makes the same three.
GRID = ("--model", "resnet18", "--resolution", "32", "--batch", f"1,{IMAGES},2", "--impl", "eager", "--dtype", "fp32")
MEASURE = (*GRID, "--mode", "infer", "--device", "cpu", "--min-time", "0.01", "--max-time", "0.05")


def case(batch: int = 1, **changes: Any) -> Case:
    fields = {"model": "resnet18", "impl": "eager", "mode": "infer", "dtype": "fp32", "layout": "nchw",
              "resolution": (32, 32), "batch": batch, "device": "cpu"}  # fmt: skip
    return Case(**{**fields, **changes})


CASES = [case(1), case(IMAGES), case(2)]


class Silent:
    """Hears what a sweep tells."""

    def phase(self, case: str | None, what: str) -> None: ...

    def row(self, row: Row, done: int, total: int, seconds_left: float | None) -> None: ...

    def note(self, text: str) -> None: ...

    def tick(self) -> None: ...


def measured(path: Path, cases: list[Case] = CASES, options: SweepOptions = QUICK) -> list[Row]:
    """The rows of a sweep in real worker processes."""
    return sweep.run(cases, path, devices.environment("cpu"), options, Silent()).rows


def inject(monkeypatch: pytest.MonkeyPatch, *fault: str) -> list[int]:
    """Has the next sweeps' workers meet a fault of `faulty`; adds the ids of those that start to the list."""
    start, started = executor.Process, list[int]()

    def faulty(command: object, **how: Any) -> Any:
        process = start(["tests.vitbench.faults.faulty", *fault], **how)
        started.append(process.pid)
        return process

    monkeypatch.setattr(executor, "Process", faulty)
    return started


Command = Callable[..., Any]
