"""What is said of a sweep whose rows are known."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vitbench.report.standouts import standouts
from vitbench.report.tables import EXPLAINED, explained, sweep_columns
from vitbench.results import journal
from vitbench.results.row import SCHEMA, TABLES, Row

TABLE = TABLES[SCHEMA]


def row(batch: int, ms: float, mib: float, impl: str = "eager", half: float = 0.01, **changes: object) -> Row:
    found = {
        "schema": SCHEMA, "case": f"cmt_s/{impl}/infer/bf16/nchw/224/b{batch}/cuda", "status": "ok", "reason": "",
        "model": "cmt_s", "family": "cmt", "impl": impl, "mode": "infer", "dtype": "bf16", "layout": "nchw",
        "device": "cuda", "device_name": "H200", "resolution": "224", "batch": batch, "img_per_s": batch / ms * 1e3,
        "latency_ms_p50": ms, "latency_ms_ci_low": ms * (1 - half), "latency_ms_ci_high": ms * (1 + half),
        "peak_mem_mib": mib, "valid": True,
    }  # fmt: skip
    return TABLE.of(**{**found, **changes})


#: 100, 400, 410 and 412 img/s; memory of 10 MiB an image, then of 30.
EAGER = [row(1, 10.0, 60), row(4, 10.0, 90), row(16, 39.02, 210), row(64, 155.3, 1650)]
FUSED = [row(1, 5.0, 60, "fused"), row(4, 12.5, 90, "fused", half=0.04)]


@pytest.mark.fast
def test_each_thing_that_stands_out_is_named() -> None:
    assert standouts([*EAGER, *FUSED]) == [
        "fastest cmt_s infer: 412.1 img/s at 224 px (eager bf16 batch 64)",
        "throughput no longer grows from batch 4: cmt_s eager infer bf16 224 px",
        "95 % interval wider than ±2.5% of the median in 1 of 6 cases (a longer --max-time narrows it): "
        "cmt_s fused infer bf16 224 px batch 4 ±4.0%",
        "fused over eager, cmt_s infer: 0.80 to 2.00 times, median 1.40; slower in 1 of 2 cases",
        "memory jumps between batch 16 and 64: cmt_s eager infer bf16 224 px: 30.0 MiB an image, 10.0 before",
    ]


@pytest.mark.fast
def test_what_is_not_sound_or_does_not_stand_out_is_not_named() -> None:
    growing = [row(1, 10.0, 60), row(4, 20.0, 90), row(16, 40.0, 210)]
    assert [line.partition(" ")[0] for line in standouts(growing)] == ["fastest"]
    assert standouts([row(1, 1.0, 60, valid=False), row(4, 1.0, 60, status="oom", reason="out of memory")]) == []


def test_every_column_is_explained(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    shown = sweep_columns([*EAGER, *FUSED])
    assert [line.split("  ")[0] for line in explained(shown)] == [column.name for column in shown]
    path = tmp_path / "a.csv"
    for one in [*EAGER, *FUSED]:
        journal.append(path, one, [])
    done = command("report", str(path), "--explain", "--sort", "img/s", "--filter", "impl=eager")
    assert done.returncode == 0, done.stderr
    assert EXPLAINED["img/s"] in done.stdout
    assert [line.split()[6] for line in done.stdout.splitlines() if line.startswith("cmt_s")] == ["64", "16", "4", "1"]
    assert "memory jumps" in done.stdout
