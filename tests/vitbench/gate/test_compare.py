"""Verdicts of change: what is caught, what refuses, and what the command line prints and returns."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vitbench.cli import app
from vitbench.errors import InputError
from vitbench.gate import verdicts
from vitbench.gate.compare import Change, Comparison, compare, interval, judge, parse_thresholds
from vitbench.gate.measurements import NUMBERS, TIME, load
from vitbench.results import journal
from vitbench.results.row import SCHEMA, TABLE

pytestmark = pytest.mark.fast

MEMORY, THROUGHPUT = NUMBERS["peak_mem_mib"], NUMBERS["img_per_s"]
COLUMNS: dict[str, Any] = {
    "schema": SCHEMA, "case": "", "status": "ok", "reason": "", "model": "cmt_s", "family": "cmt", "impl": "eager",
    "mode": "infer", "dtype": "fp32", "layout": "nchw", "device": "cuda", "device_name": "H200", "resolution": "224",
    "batch": 1, "input": "noise", "weights": "random", "latency_ms_p50": 10.0, "peak_mem_mib": 100.0,
    "energy_j_per_img": 2.0, "torch": "2.13.0", "triton": "3.7.1", "driver": "580", "device_uuid": "GPU-1",
    "threads": 1,
}  # fmt: skip


def samples(centre: float, count: int = 60, spread: float = 0.01, seed: int = 0) -> list[float]:
    noise = np.random.default_rng(seed).standard_t(3, count)
    return [float(x) for x in centre * np.exp(spread * noise)]


def sweep(path: Path, times: dict[str, list[float]], **changes: Any) -> Path:
    """A vitbench CSV with these samples in ms; `changes` go into every row."""
    for case, values in times.items():
        journal.append(path, TABLE.of(**{**COLUMNS, "case": case, **changes}), values)
    return path


def call(*arguments: object) -> tuple[int, str]:
    """Exit code and output of `vitbench compare`; an InputError is exit code 2, as in `vitbench.cli.main`."""
    done = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    if isinstance(done.exception, InputError):
        return 2, str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).with_name("bench_compare.py")
    spec = importlib.util.spec_from_file_location("bench_compare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("ratio", "wanted", "least"), [(1.0, "same", 99), (1.07, "slower", 95), (0.93, "faster", 95)])
def test_simulated_truth_is_found(simulation: ModuleType, ratio: float, wanted: str, least: int) -> None:
    """A hundred of the pairs that `make bench-compare` judges a thousand of."""
    found, counts = simulation.verdicts(ratio, 100, 5)
    assert found[wanted] >= least, found
    assert min(counts) >= 10


def test_loud_noise_is_unsure_and_no_alarm(simulation: ModuleType) -> None:
    found, _ = simulation.verdicts(1.0, 30, 6, simulation.LOUD)
    assert found["slower"] + found["faster"] <= 1, found


@pytest.mark.parametrize(
    ("base", "new", "wanted"),
    [
        (samples(10), samples(10, seed=1), "same"),
        (samples(10), samples(10.3, seed=1), "same"),
        (samples(10), samples(10.8, seed=1), "slower"),
        (samples(10), samples(9.2, seed=1), "faster"),
        (samples(10, 10, 0.4), samples(10.8, 10, 0.4, seed=1), "unsure"),
        (samples(10, 10, 0.1), samples(10, 10, 0.1, seed=1), "unsure"),
        ([10.0], [12.0], "unsure"),
        ([10.0], [10.1], "same"),
        ([0.0], [10.0], "unsure"),
    ],
)
def test_time_needs_both_a_difference_and_a_threshold(base: list[float], new: list[float], wanted: str) -> None:
    assert judge("case", TIME, base, new, 0.05).verdict == wanted


def test_threshold_decides_what_matters() -> None:
    base, new = samples(10), samples(10.4, seed=1)
    assert [judge("case", TIME, base, new, t).verdict for t in (0.02, 0.10)] == ["slower", "same"]


def test_direction_follows_the_metric() -> None:
    low, high = samples(100), samples(120, seed=1)
    assert judge("case", THROUGHPUT, low, high, 0.05).verdict == "faster"
    assert judge("case", THROUGHPUT, high, low, 0.05).verdict == "slower"
    assert judge("case", TIME, low, high, 0.05).verdict == "slower"
    assert judge("case", MEMORY, [100.0], [106.0], 0.05).verdict == "slower"
    assert judge("case", MEMORY, [100.0], [90.0], 0.05).verdict == "faster"
    assert judge("case", MEMORY, [100.0], [104.0], 0.05).verdict == "same"


def test_interval_holds_the_true_ratio_and_grows_with_drift() -> None:
    low, high = interval(samples(10, 200), samples(11, 200, seed=1))
    assert low < 1.1 < high
    assert high / low < 1.03
    drifting = [x * (1 + 0.1 * i / 200) for i, x in enumerate(samples(10, 200))]
    low_drift, high_drift = interval(drifting, drifting)
    # Single samples drawn at will would not see that neighbours move together.
    assert high_drift / low_drift > 1.5 * (high / low - 1) + 1
    assert interval(samples(10, 50), samples(11, 50)) == interval(samples(10, 50), samples(11, 50))


@pytest.mark.parametrize("text", ["5", "x%", "-1%", "0%", "=5%", "nan%", "attention*=", "a=b=3"])
def test_bad_thresholds_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="write 5% or"):
        parse_thresholds([text])


def test_patterns_override_the_default_and_the_last_one_wins() -> None:
    thresholds = parse_thresholds(["8%", "cmt_*=3%", "cmt_s/*=4%"])
    name = "tests/bench_kernels.py::test_attention[x]"
    assert [thresholds.of(case) for case in ("vit/eager", "cmt_ti/eager", "cmt_s/eager")] == [0.08, 0.03, 0.04]
    assert parse_thresholds(["attention*=3%"]).of(name) == 0.03
    assert parse_thresholds(["attention*=3%"]).of("tests/attention.py::test_other") == 0.05


def test_planted_ten_percent_is_caught_on_this_machine(tmp_path: Path) -> None:
    """A reference op that does a tenth more work, timed in turns, for as long as noise leaves the verdict unsure.

    A busy machine must not hide it: processor time, the least of 25 short timings, and as a sample how many times that
    of a reference timed in the same turn, which a clock or a neighbour slows alike.
    """
    x = torch.randn(96, 96, generator=torch.Generator().manual_seed(0))

    def seconds(products: int) -> float:
        start = time.thread_time()
        for _ in range(products):
            torch.softmax(x @ x, -1)
        return time.thread_time() - start

    work = {"reference": 10, "base": 10, "planted": 11, "again": 10}
    times: dict[str, list[float]] = {name: [] for name in work}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(10):
            for _ in range(40):
                least = dict.fromkeys(work, float("inf"))
                for _ in range(25):
                    for name, products in work.items():
                        least[name] = min(least[name], seconds(products))
                for name, value in least.items():
                    times[name].append(value / least["reference"])
            files = {name: sweep(tmp_path / f"{name}.csv", {"op": values}) for name, values in times.items()}
            code, output = call(files["base"], files["planted"])
            if output.splitlines()[1].split()[0] != "unsure":
                break
    finally:
        torch.set_num_threads(threads)
    assert (code, output.splitlines()[1].split()[0]) == (1, "slower"), output
    assert call(files["base"], files["again"])[0] == 0


def test_memory_and_energy_are_compared_too(tmp_path: Path) -> None:
    base = sweep(tmp_path / "a.csv", {"c": samples(10)})
    more = sweep(tmp_path / "b.csv", {"c": samples(10)}, peak_mem_mib=120.0, energy_j_per_img=1.5)
    found = {change.metric: change.verdict for change in compare(load(base), load(more)).changes}
    assert found == {"memory": "slower", "time": "same", "energy": "faster"}


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ({}, {"status": "oom", "reason": "2 GiB"}, "slower"),
        ({}, {"status": "unsupported", "reason": "no"}, "slower"),
        ({"status": "oom"}, {}, "faster"),
        ({"status": "unsupported"}, {"status": "unsupported"}, "same"),
        ({}, {"valid": False, "reason": "throttled"}, "unsure"),
        ({"valid": False}, {"status": "oom"}, "slower"),
    ],
)
def test_status_is_a_verdict(before: dict[str, Any], after: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    base = sweep(tmp_path / "a.csv", {"c": samples(10)}, **before)
    new = sweep(tmp_path / "b.csv", {"c": samples(10)}, **after)
    result = compare(load(base), load(new))
    assert result.verdict == wanted
    assert result.exit_code == (wanted == "slower")


def test_missing_case_is_a_regression_and_a_new_one_is_not(tmp_path: Path) -> None:
    one = sweep(tmp_path / "a.csv", {"c": samples(10)})
    two = sweep(tmp_path / "b.csv", {"c": samples(10), "d": samples(5)})
    code, output = call(two, one)
    assert code == 1
    assert "ok -> missing" in output
    code, output = call(one, two)
    assert (code, output.splitlines()[-1].split("; ")[-1]) == (0, "1 cases are only in NEW")


@pytest.mark.parametrize(
    "change", [{"device_name": "H100"}, {"driver": "570"}, {"torch": "2.12.0"}, {"triton": "3.6.0"}, {"threads": 2}]
)
def test_other_environment_refuses(change: dict[str, Any], tmp_path: Path) -> None:
    base = sweep(tmp_path / "a.csv", {"c": samples(10)})
    new = sweep(tmp_path / "b.csv", {"c": samples(10)}, **change)
    code, output = call(base, new)
    assert code == 2
    ((name, value),) = change.items()
    assert f"{name} was {COLUMNS[name]}, is {value}" in output
    code, output = call(base, new, "--cross-environment")
    assert code == 0
    assert f"differs: {name}" in output


def test_other_card_of_the_same_name_is_told(tmp_path: Path) -> None:
    base = sweep(tmp_path / "a.csv", {"c": samples(10)})
    code, output = call(base, sweep(tmp_path / "b.csv", {"c": samples(10)}, device_uuid="GPU-2"))
    assert code == 0
    assert "differs: device_uuid was GPU-1, is GPU-2" in output


def test_bad_files_and_patterns_are_one_line(tmp_path: Path) -> None:
    base = sweep(tmp_path / "a.csv", {"cmt_s/eager": samples(10)})
    text, empty, benchmarks = tmp_path / "b.csv", tmp_path / "empty.csv", tmp_path / "b.json"
    text.write_text("hello\n")
    empty.write_text("")
    benchmarks.write_text("{}")
    for path, message in (
        (tmp_path / "no.csv", "does not exist"), (text, "not a vitbench CSV"), (empty, "holds no case"),
        (benchmarks, "not what `pytest --benchmark-json` writes"),
    ):  # fmt: skip
        code, output = call(base, path)
        assert (code, message in output, "\n" in output) == (2, True, False), output
    schema = tmp_path / "schema.csv"
    schema.write_text(base.read_text().replace(f"\n{SCHEMA},", "\n99,"))
    assert "has schema 99" in call(base, schema)[1]
    code, output = call(base, base, "--threshold", "cmt_t*=3%")
    assert code == 2
    assert "did you mean cmt_s" in output


def test_markdown_and_json_say_the_same(tmp_path: Path) -> None:
    base = sweep(tmp_path / "a.csv", {"c": samples(10), "d": samples(10)})
    new = sweep(tmp_path / "b.csv", {"c": samples(10, seed=1), "d": samples(12)})
    code, output = call(base, new, "--markdown", tmp_path / "m.md", "--json", "-")
    record = json.loads(output)
    assert (code, record["verdict"], record["exit_code"]) == (1, "slower", 1)
    assert [(c["case"], c["metric"]) for c in record["changes"] if c["verdict"] == "slower"] == [("d", "time")]
    moved, folded = (tmp_path / "m.md").read_text().split("<details>")
    assert moved.startswith("**vitbench compare: slower: 2 cases compared, 1 slower")
    assert "| slower | d | time | 10" in moved
    assert "| c |" not in moved
    assert folded.count("| same |") == 5
    assert call(base, new, "--markdown", "-")[1] == (tmp_path / "m.md").read_text()


def test_worst_change_stands_first() -> None:
    found = [Change("c", "time", "ms", verdict, 0.05) for verdict in ("same", "unsure", "slower", "faster")]
    result = Comparison(found)
    assert (result.verdict, result.exit_code) == ("slower", 1)
    assert verdicts.conclusion(result) == "slower: 1 cases compared, 1 slower, 1 unsure, 1 faster, 1 same"
    assert Comparison(found[:2]).exit_code == 0
    assert Comparison([]).verdict == "same"


def test_any_suites_benchmark_json_is_compared(tmp_path: Path) -> None:
    """A suite that knows nothing of vitbench, run by pytest-benchmark; then its file with one benchmark slowed."""
    suite = tmp_path / "test_theirs.py"
    suite.write_text("def test_sum(benchmark):\n    benchmark(sum, range(1000))\n\n\n" +
                     "def test_sort(benchmark):\n    benchmark(sorted, range(1000))\n")  # fmt: skip
    base = tmp_path / "base.json"
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "-p", "no:cacheprovider", "--benchmark-only"]
    command += ["--benchmark-json", str(base), "--benchmark-max-time", "0.1", "--benchmark-min-rounds", "20"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

    def changed(name: str, edit: Callable[[dict[str, Any]], None]) -> Path:
        record = json.loads(base.read_text())
        edit(record)
        path = tmp_path / name
        path.write_text(json.dumps(record))
        return path

    def slow(record: dict[str, Any]) -> None:
        stats = record["benchmarks"][1]["stats"]
        stats["data"] = [2 * value for value in stats["data"]]

    def elsewhere(record: dict[str, Any]) -> None:
        record["machine_info"]["cpu"]["brand_raw"] = "Another CPU"

    assert call(base, base)[0] == 0
    code, output = call(base, changed("slow.json", slow))
    assert code == 1
    assert [line.split()[:4] for line in output.splitlines()[1:2]] == [["slower", "sort", "time", "+100.0%"]]
    assert call(base, changed("one.json", lambda record: record["benchmarks"].pop()))[0] == 1
    code, output = call(base, changed("elsewhere.json", elsewhere))
    assert code == 2
    assert "is Another CPU" in output
