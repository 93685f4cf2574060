"""What a results file says of each case: vitbench's CSV and samples, or pytest-benchmark's JSON. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitbench.errors import InputError
from vitbench.gate.summaries import from_interval, from_quartiles
from vitbench.results import journal
from vitbench.results.row import Row, as_dict

OK, UNSUPPORTED = "ok", "unsupported"


@dataclass(frozen=True)
class Metric:
    """A quantity that is compared. `exact` ones have no noise, so one number is enough to judge by."""

    name: str
    unit: str
    higher_is_better: bool = False
    exact: bool = False


TIME = Metric("time", "ms")
#: Read beside the time: from the column of the CSV, or from a benchmark's `extra_info`, of the name on the left.
NUMBERS = {
    "peak_mem_mib": Metric("memory", "MiB", exact=True),
    # A mean over at least 5 s of repeated steps: the samples are already in it.
    "energy_j_per_img": Metric("energy", "J/img", exact=True),
    "img_per_s": Metric("throughput", "img/s", higher_is_better=True),
}


@dataclass(frozen=True)
class Outcome:
    """One case: its status, why it is not ok, and the values of each metric (raw samples of the time, in order)."""

    status: str
    reason: str = ""
    values: Mapping[Metric, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A results file: its kind, where and with what it was measured, and its cases by name.

    `environment` must agree for two files to be comparable; `noted` is told when it does not.
    """

    path: Path
    kind: str
    environment: dict[str, str]
    noted: dict[str, str]
    cases: dict[str, Outcome]


def load(path: Path) -> Measured:
    """Reads a vitbench CSV or a pytest-benchmark JSON, told apart by the file's ending.

    Raises: InputError when the file is missing, empty or something else.
    """
    if not path.is_file():
        raise InputError(f"results file {path} does not exist")
    found = _benchmarks(path) if path.suffix == ".json" else _sweep(path)
    if not found.cases:
        raise InputError(f"{path} holds no case")
    return found


_COMPARABLE = ("schema", "device_name", "driver", "torch", "triton", "threads", "input", "weights")
_NOTED = ("device_uuid", "vitbench", "commit", "dirty")


def _sweep(path: Path) -> Measured:
    rows = journal.read(path)
    samples = journal.read_samples(path)
    cases = {}
    for row in rows:
        values: dict[Metric, list[float]] = {}
        timed = samples.get(row.case) or _from_row(row)
        if row.status == OK and timed:
            values[TIME] = timed
        numbers = {"peak_mem_mib": row.memory.peak_mem_mib, "energy_j_per_img": row.energy.energy_j_per_img}
        for name, number in numbers.items():
            if row.status == OK and number is not None:
                values[NUMBERS[name]] = [number]
        status = "not measured cleanly" if row.status == OK and row.health.valid is False else row.status
        cases[row.case] = Outcome(status, row.reason, values)
    first = as_dict(rows[0]) if rows else {}
    return Measured(path, "vitbench CSV", _texts(first, _COMPARABLE), _texts(first, _NOTED), cases)


def _from_row(row: Row) -> list[float]:
    """What stands in the CSV of samples that are not beside it."""
    speed = row.speed
    median, low, high = speed.latency_ms_p50, speed.latency_ms_ci_low, speed.latency_ms_ci_high
    if median is None:
        return []
    return [median] if low is None or high is None else from_interval(median, low, high, speed.samples or 1)


def _texts(record: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    return {name: str(record[name]) for name in names if record.get(name) not in (None, "")}


#: How benchmark JSON of other tools is known; they say too little of their samples, or leave them in other files.
_OTHERS = {
    "google-benchmark": lambda text: "context" in text and "benchmarks" in text,
    "nvbench": lambda text: "benchmarks" in text and ("devices" in text or "meta" in text),
    "optimum-benchmark": lambda text: "report" in text or any(
        isinstance(part, dict) and "latency" in part for part in text.values()
    ),
}  # fmt: skip


def _benchmarks(path: Path) -> Measured:
    try:
        text = json.loads(path.read_text(encoding="utf-8-sig"))
        if "machine_info" not in text:
            raise _not_pytests(path, text)
        info = text["machine_info"]
        cases = {entry["fullname"]: _benchmark(entry) for entry in text["benchmarks"]}
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise InputError(f"{path} is not what `pytest --benchmark-json` writes ({problem})") from problem
    cpu = info.get("cpu")
    brand = cpu.get("brand_raw") or cpu.get("brand") if isinstance(cpu, dict) else cpu
    environment = {
        "schema": "pytest-benchmark " + str(text.get("version", "")).partition(".")[0],
        "device_name": str(info.get("device_name") or brand or info.get("machine", "unknown")),
        "python": ".".join(str(info.get("python_version", "")).split(".")[:2]),
    } | _texts(info, ("driver", "torch", "triton", "threads"))
    commit = text.get("commit_info") or {}
    noted = {"node": str(info.get("node", "")), "commit": str(commit.get("id") or "")[:12]} | _texts(info, _NOTED[:1])
    return Measured(path, "pytest-benchmark JSON", environment, {k: v for k, v in noted.items() if v}, cases)


def _not_pytests(path: Path, text: Mapping[str, Any]) -> InputError:
    other = next((name for name, is_it in _OTHERS.items() if is_it(text)), None)
    what = f"is a JSON of {other}" if other else "is not what `pytest --benchmark-json` writes"
    return InputError(f"{path} {what}; compared are vitbench's CSV and pytest-benchmark's JSON")


def _benchmark(entry: Mapping[str, Any]) -> Outcome:
    stats, extra = entry["stats"], entry.get("extra_info") or {}
    seconds = stats.get("data") or from_quartiles(stats)
    if not seconds:
        raise InputError(
            f"{entry['fullname']} has neither raw samples nor quartiles of several rounds, so that nothing would be "
            "noticed: write the file with --benchmark-save-data, or by --benchmark-json"
        )
    values = {TIME: [1e3 * float(value) for value in seconds]}
    for name, metric in NUMBERS.items():
        if isinstance(extra.get(name), int | float):
            values[metric] = [float(extra[name])]
    return Outcome(OK, "", values)
