"""Modelled against measured time: does the model rank kernels as the GPU does?"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from vitbench import columns
from vitbench.audit.records import Row
from vitbench.columns import Column
from vitbench.errors import InputError

COLUMNS = ("kernel", "case", "pass", "dtype", "median_us")


@dataclass(frozen=True)
class Pair:
    """One measured row and the sum of the modelled times of its launches, in microseconds."""

    name: str
    measured_us: float
    modelled_us: float


def measurements(path: Path) -> list[tuple[dict[str, str], float]]:
    """(kernel, case, pass, dtype, launches) and microseconds of each measurement.

    A CSV has the columns COLUMNS; in a pytest-benchmark JSON each benchmark's `extra_info` names the first four. Where
    there is a column `launches` too, it names what was launched, and a row in which it is empty ran nobody's kernels
    that could be audited; elsewhere the pass does.

    Raises: InputError when the file has another form.
    """
    try:
        if path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
            records = [{**entry["extra_info"], "median_us": entry["stats"]["median"] * 1e6} for entry in found]
        else:
            with path.open(newline="", encoding="utf-8") as handle:
                records = list(csv.DictReader(handle))
        return [
            (
                {name: str(record[name]) for name in COLUMNS[:-1]}
                | {"launches": record.get("launches", record["pass"])},
                float(record["median_us"]),
            )
            for record in records
            if record.get("median_us") not in (None, "") and "kernel" in record and record.get("launches") != ""
        ]
    except (KeyError, TypeError, ValueError) as problem:
        raise InputError(f"{path} holds no kernel timings ({problem}); it needs {', '.join(COLUMNS)}") from problem


def pairs(rows: Sequence[Row], path: Path) -> list[Pair]:
    """Measurements with the modelled time of what they measured.

    What was launched is named by wildcards joined with "+", so `bwd_*` is the whole backward and `fwd_kv+fwd` two
    kernels; the modelled time is the sum of theirs. Launches of a bf16 or fp16 pass that add up in fp32 belong to it.

    Raises: InputError when the rows are of several architectures or nothing was measured that the audit knows.
    """
    if len({row.arch for row in rows}) > 1:
        raise InputError("measurements are of one GPU: give its architecture, such as --arch sm_90, with --validate")
    found = []
    for named, measured_us in measurements(path):
        launches = named.pop("launches")
        modelled_us = _modelled_us(rows, named, launches.split("+"))
        if modelled_us:
            found.append(Pair("/".join(named.values()), measured_us, modelled_us))
    if not found:
        raise InputError(
            f"{path} measures no launch that was audited; kernel, case, pass and dtype must be the audit's"
        )
    return found


def _modelled_us(rows: Sequence[Row], named: dict[str, str], patterns: Sequence[str]) -> float:
    """The sum over the launches that match; 0 where a pattern matches none in the dtype that was measured."""
    known = [
        row
        for row in rows
        if (row.kernel, row.case, row.status) == (named["kernel"], named["case"], "ok")
        and any(fnmatchcase(row.pass_, pattern) for pattern in patterns)
    ]
    own = [row for row in known if row.dtype == named["dtype"]]
    if not all(any(fnmatchcase(row.pass_, pattern) for row in own) for pattern in patterns):
        return 0.0
    passes = {row.pass_ for row in own}
    sums = [row for row in known if row.dtype == "fp32" and row.pass_ not in passes]
    return sum(row.modelled_us for row in (*own, *sums))


def rank_correlation(pairs: Sequence[Pair]) -> float | None:
    """Spearman's, ties averaged; None for fewer than three pairs or when one side does not vary."""
    sides = (_ranks([p.measured_us for p in pairs]), _ranks([p.modelled_us for p in pairs]))
    if len(pairs) < 3 or any(len(set(side)) == 1 for side in sides):
        return None
    return statistics.correlation(*sides)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]


def table(pairs: Sequence[Pair]) -> list[Column]:
    """A row for each pair, the farthest off first."""
    ordered = sorted(pairs, key=lambda p: p.modelled_us / p.measured_us)
    two = "{:.2f}".format
    return [
        Column("measured us", [p.measured_us for p in ordered], show=two),
        Column("modelled us", [p.modelled_us for p in ordered], show=two),
        Column("ratio", [p.modelled_us / p.measured_us for p in ordered], show=two),
        Column("launch", [p.name for p in ordered], "key"),
    ]


def summary(pairs: Sequence[Pair]) -> str:
    """The table as plain text, and the conclusion."""
    return f"{columns.text(table(pairs))}\n{conclusion(pairs)}"


def conclusion(pairs: Sequence[Pair]) -> str:
    """Rank correlation and median ratio."""
    correlation = rank_correlation(pairs)
    ratio = statistics.median(p.modelled_us / p.measured_us for p in pairs)
    told = "not defined" if correlation is None else f"{correlation:.3f}"
    return f"{len(pairs)} launches: rank correlation {told}, median modelled / measured {ratio:.3f}"
