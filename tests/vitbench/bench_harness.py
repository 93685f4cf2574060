"""What the harness itself costs. Run by `make bench-harness`; the timings are reports, not tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vitbench import selection
from vitbench.bench import plan, sweep
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case, Grid
from vitbench.catalog import catalog
from vitbench.measure import device as devices
from vitbench.ops.names import IMPLS
from vitbench.results.row import Row

MEASURING = ("building", "compiling", "predicting", "memory", "timing", "idle power", "energy")


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--format", "csv"]], ids=" ".join)
def test_command(benchmark: BenchmarkFixture, arguments: list[str]) -> None:
    """Wall time of a whole process."""
    command = [sys.executable, "-m", "vitbench", *arguments]
    benchmark(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


#: What both programs are to measure, at their own defaults otherwise.
SMALL_CASE = ("--model", "resnet50", "--device", "cpu")


def test_one_small_case(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Wall time of a whole process that measures resnet50 at 128 px and batch 4, in its own environment each time."""
    command = [sys.executable, "-m", "vitbench", "bench", *SMALL_CASE, "--impl", "eager"]
    command += ["--resolution", "128", "--batch", "4", "--fresh", "--out", str(tmp_path / "a.csv")]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds=3)


#: torchvision's own operators, which timm's imports want and which no CPU build of torch has.
WITH_TIMM = """
import runpy, sys, torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_one_small_case_by_timm(benchmark: BenchmarkFixture) -> None:
    """The same by timm's benchmark.py, which its package lacks: TIMM_BENCHMARK names the file of a checkout."""
    script = os.environ.get("TIMM_BENCHMARK")
    if not script:
        pytest.skip("TIMM_BENCHMARK names no benchmark.py of timm")
    command = [sys.executable, "-c", WITH_TIMM, script, *SMALL_CASE, "--img-size", "128", "--batch-size", "4"]
    command += ["--bench", "inference", "--precision", "float32"]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds=3)


def test_plan_100_000_cases(benchmark: BenchmarkFixture) -> None:
    grid = Grid(
        models=[name for name, entry in catalog().items() if entry.family == "vit"][:25],
        impls=IMPLS[:3],
        modes=selection.MODES,
        dtypes=selection.DTYPES,
        layouts=selection.LAYOUTS,
        resolutions=[f"x{factor / 4}" for factor in range(1, 10)],
        batches=list(range(1, 14)),
        device="cpu",
    )
    cases = benchmark(lambda: plan.expand(grid))
    assert len(cases) >= 100_000
    assert len({case.id for case in cases}) == len(cases)


class PhaseClock:
    """Adds up the time between one phase the worker reports and the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._at = "starting"
        self._since = time.perf_counter()

    def phase(self, case: str | None, what: str) -> None:
        now = time.perf_counter()
        self.seconds[self._at] += now - self._since
        self._at, self._since = what, now

    def row(self, row: Row, done: int, total: int, seconds_left: float | None) -> None:
        assert row.status == "ok", row.reason
        self.phase(None, "between cases")

    def note(self, text: str) -> None: ...

    def tick(self) -> None: ...


def test_share_outside_measuring(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """50 small cases of one model: the share of the wall time that is neither measuring, building nor compiling."""
    cases = [Case("resnet18", "eager", "infer", "fp32", "nchw", (64, 64), batch, "cpu") for batch in range(1, 51)]
    environment = devices.environment("cpu")
    clock = PhaseClock()
    benchmark.pedantic(
        lambda: sweep.run(cases, tmp_path / "a.csv", environment, SweepOptions(max_time=1.0), clock),
        rounds=1,
        iterations=1,
    )
    clock.phase(None, "end")
    wall = sum(clock.seconds.values())
    outside = wall - sum(clock.seconds[phase] for phase in MEASURING)
    benchmark.extra_info["outside_share"] = round(outside / wall, 4)
    for phase, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        benchmark.extra_info[f"{phase}_s"] = round(seconds, 2)
