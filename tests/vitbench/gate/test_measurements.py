"""Files whose raw samples are missing, and files of other tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitbench.errors import InputError
from vitbench.gate.compare import compare
from vitbench.gate.measurements import TIME, load
from vitbench.gate.summaries import from_interval, from_quartiles
from vitbench.measure.latency import median_interval, quantile
from vitbench.results import journal
from vitbench.results.row import SCHEMA, TABLE, Row

pytestmark = pytest.mark.fast


def stats(median: float, spread: float, rounds: int, **changes: Any) -> dict[str, Any]:
    """Without raw data, as `pytest --benchmark-save` leaves them; `spread` is (q3 - q1) / median."""
    q1, q3 = median * (1 - spread / 2), median * (1 + spread / 2)
    found = {"min": q1 * 0.9, "max": q3 * 1.3, "q1": q1, "median": median, "q3": q3, "rounds": rounds, "iterations": 1}
    return {name: value for name, value in {**found, **changes}.items() if value is not None}


def saved(path: Path, of: dict[str, Any]) -> Path:
    info = {"node": "n", "machine": "x86_64", "python_version": "3.11.1"}
    entry = {"fullname": "t.py::test_attention", "extra_info": {}, "stats": of}
    path.write_text(json.dumps({"machine_info": info, "benchmarks": [entry], "version": "5.1.0"}))
    return path


@pytest.mark.parametrize(
    ("ratio", "spread", "rounds", "wanted"),
    [
        (4.0, 0.02, 700, "slower"),
        (1.2, 0.02, 40, "slower"),
        (0.5, 0.02, 40, "faster"),
        (1.01, 0.02, 700, "same"),
        (1.1, 0.9, 9, "unsure"),
    ],
)
def test_quartiles_and_rounds_stand_in_for_raw_samples(
    tmp_path: Path, ratio: float, spread: float, rounds: int, wanted: str
) -> None:
    base = load(saved(tmp_path / "base.json", stats(3e-4, spread, rounds)))
    new = load(saved(tmp_path / "new.json", stats(3e-4 * ratio, spread, rounds)))
    result = compare(base, new)
    assert result.verdict == wanted
    assert result.changes[0].ratio == pytest.approx(ratio, rel=0.02 + spread / rounds)


@pytest.mark.parametrize("lacks", [{"q1": None}, {"rounds": 1}, {"rounds": None}])
def test_what_cannot_be_judged_is_refused_by_name(tmp_path: Path, lacks: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"test_attention has neither .*--benchmark-save-data"):
        load(saved(tmp_path / "a.json", {**stats(1e-3, 0.02, 50), **lacks}))


def test_drawn_samples_have_the_quartiles_and_the_interval() -> None:
    drawn = from_quartiles(stats(2.0, 0.1, 401))
    assert drawn is not None
    assert [quantile(drawn, q) for q in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx([1.71, 1.9, 2.0, 2.1, 2.73])
    assert drawn != sorted(drawn)
    low, high = median_interval(from_interval(2.0, 1.96, 2.1, 300))
    assert (low, high) == pytest.approx((1.96, 2.1), abs=0.01)


def row(ms: float) -> Row:
    fields: dict[str, Any] = {
        "schema": SCHEMA, "case": "m/eager/infer/fp32/nchw/224/b1/cpu", "status": "ok", "reason": "", "model": "m",
        "family": "f", "impl": "eager", "mode": "infer", "dtype": "fp32", "layout": "nchw", "device": "cpu",
        "device_name": "cpu", "resolution": "224", "batch": 1, "input": "noise", "weights": "random",
        "latency_ms_p50": ms, "latency_ms_ci_low": ms * 0.99, "latency_ms_ci_high": ms * 1.01, "samples": 30,
    }  # fmt: skip
    return TABLE.of(**fields)


def test_a_csv_without_its_samples_is_judged_by_its_interval(tmp_path: Path) -> None:
    for name, ms in (("base", 7.0), ("new", 21.0)):
        journal.append(tmp_path / f"{name}.csv", row(ms))
    base, new = (load(tmp_path / f"{name}.csv") for name in ("base", "new"))
    assert len(base.cases[row(1).case].values[TIME]) == 30
    assert compare(base, new).exit_code == 1
    assert compare(base, base).verdict == "same"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            {"context": {"num_cpus": 8}, "benchmarks": [{"name": "BM_x", "real_time": 3.0, "time_unit": "ns"}]},
            "is a JSON of google-benchmark",
        ),
        ({"meta": {"argv": []}, "devices": [], "benchmarks": [{"name": "copy", "states": []}]}, "is a JSON of nvbench"),
        ({"forward": {"latency": {"unit": "s", "values": [0.1]}}, "memory": None}, "is a JSON of optimum-benchmark"),
        ({"anything": 1}, "is not what"),
    ],
)
def test_json_of_other_tools_is_refused_by_their_name(tmp_path: Path, text: dict[str, Any], says: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(text))
    with pytest.raises(InputError, match=rf"{says}.*; compared are vitbench's CSV and pytest-benchmark's JSON"):
        load(path)
