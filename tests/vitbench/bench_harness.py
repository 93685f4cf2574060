"""What the harness itself costs. Run by `make bench-harness`; the timings are reports, not tests."""

from __future__ import annotations

import os
import statistics
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
from vitbench.results import journal
from vitbench.results.row import Row

MEASURING = ("building", "compiling", "predicting", "memory", "warming up", "timing", "idle power", "energy")


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--format", "csv"]], ids=" ".join)
def test_command(benchmark: BenchmarkFixture, arguments: list[str]) -> None:
    """Wall time of a whole process."""
    command = [sys.executable, "-m", "vitbench", *arguments]
    benchmark(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


#: torchvision's own operators, which timm's imports want and which no CPU build of torch has.
WITH_TIMM = """
import runpy, sys, torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

#: What both programs are to measure, at their own defaults otherwise.
SMALL_CASE = ("--model", "resnet50", "--device", "cpu")
PAIRS = 3


def by_vitbench(folder: Path) -> tuple[float, int]:
    """Seconds and samples of a process that measures the small case, which knows no model from an earlier one."""
    out = folder / "a.csv"
    command = [sys.executable, "-m", "vitbench", "bench", *SMALL_CASE, "--impl", "eager"]
    command += ["--resolution", "128", "--batch", "4", "--out", str(out)]
    start = time.perf_counter()
    env = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    seconds = time.perf_counter() - start
    samples = journal.read(out)[0].speed.samples
    assert samples is not None
    return seconds, samples


def by_timm(script: str, steps: int) -> float:
    """Seconds of timm's benchmark.py for so many steps; five at least, as it divides by a fifth of them."""
    command = [sys.executable, "-c", WITH_TIMM, script, *SMALL_CASE, "--img-size", "128", "--batch-size", "4"]
    command += ["--bench", "inference", "--precision", "float32", "--num-bench-iter", str(max(steps, 5))]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def test_one_small_case(benchmark: BenchmarkFixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wall time of whole processes that measure resnet50 at 128 px and batch 4: ours, and timm's for as many steps.

    They take turns. timm's package lacks its benchmark.py: TIMM_BENCHMARK names the file of a checkout.
    """
    script = os.environ.get("TIMM_BENCHMARK", "")
    ours: list[float] = []
    theirs: list[float] = []

    def pair() -> None:
        folder = tmp_path / str(len(ours))
        folder.mkdir()
        seconds, samples = by_vitbench(folder)
        ours.append(seconds)
        if script:
            theirs.append(by_timm(script, samples))

    benchmark.pedantic(pair, rounds=PAIRS)
    told = f"one small case: vitbench {statistics.median(ours):.2f} s"
    benchmark.extra_info["vitbench_s"] = round(statistics.median(ours), 2)
    if theirs:
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        benchmark.extra_info |= {"timm_s": round(statistics.median(theirs), 2), "ratio": round(ratio, 2)}
        told += f", timm's benchmark.py {statistics.median(theirs):.2f} s for as many steps, ratio {ratio:.2f}"
        told += f" (medians of {PAIRS} pairs in turn)"
    else:
        told += "; timm's benchmark.py is not given: TIMM_BENCHMARK=path/to/benchmark.py"
    with capsys.disabled():
        print(f"\n{told}")


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


def test_share_outside_measuring(
    benchmark: BenchmarkFixture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    with capsys.disabled():
        print(f"\n{len(cases)} cases: {outside / wall:.1%} of {wall:.0f} s outside measuring")
