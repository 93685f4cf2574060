"""Is NEW slower than BASE? The only statistics of change.

A change counts when two things hold: the interval of the ratio of medians leaves 1 out (the samples differ), and the
ratio passes the threshold (it matters). The interval is a moving-block bootstrap: neighbouring samples share the
machine's drift, so blocks of them are drawn, not single ones (H. R. Kuensch, The jackknife and the bootstrap for
general stationary observations, Annals of Statistics 17, 1989). The seed is fixed: the same files give the same
verdicts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitbench.errors import InputError, nearest
from vitbench.gate.measurements import OK, Measured, Metric, Outcome
from vitbench.patterns import matches

SAME, FASTER, SLOWER, UNSURE = "same", "faster", "slower", "unsure"
ORDER = (SLOWER, UNSURE, FASTER, SAME)  # worst first
THRESHOLD = 0.05
CONFIDENCE = 0.99
_RESAMPLES = 1000
_MOST_SAMPLES = 2000  # more are thinned evenly: the interval is narrow by then


@dataclass(frozen=True)
class Thresholds:
    """The share of change that matters: one for all, others for cases that match a pattern (the last that does)."""

    default: float = THRESHOLD
    patterns: tuple[tuple[str, float], ...] = ()

    def of(self, case: str) -> float:
        return next((share for pattern, share in reversed(self.patterns) if _chosen(case, pattern)), self.default)


def _chosen(case: str, pattern: str) -> bool:
    """A benchmark goes by its full name and by that without file and `test_`: `attention*` is test_attention[...]."""
    short = case.rpartition("::")[2]
    return any(matches(name, pattern) for name in (case, short, short.removeprefix("test_")))


def parse_thresholds(texts: Sequence[str]) -> Thresholds:
    """From "5%" (for all) and "attention*=3%" (for the cases that match).

    Raises: InputError.
    """
    default, patterns = THRESHOLD, []
    for text in texts:
        pattern, equals, share_text = text.rpartition("=")
        number = share_text.strip().removesuffix("%")
        try:
            share = float(number) / 100
        except ValueError:
            share = math.nan
        if not share_text.strip().endswith("%") or not 0 < share < 10 or (equals and not pattern.strip()):
            raise InputError(f"--threshold {text!r} is not a percentage; write 5% or 'attention*=3%'")
        if equals:
            patterns.append((pattern.strip(), share))
        else:
            default = share
    return Thresholds(default, tuple(patterns))


@dataclass(frozen=True)
class Change:
    """One metric of one case in both files.

    `base` and `new` are medians in the metric's unit, None where there is none; `ratio` is new / base, with interval.
    """

    case: str
    metric: str
    unit: str
    verdict: str
    threshold: float
    base: float | None = None
    new: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """Every change, worst first; `differences` between the environments; cases only in NEW."""

    changes: list[Change]
    differences: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        return min((change.verdict for change in self.changes), key=ORDER.index, default=SAME)

    @property
    def exit_code(self) -> int:
        """0 no regression, 1 a regression."""
        return int(self.verdict == SLOWER)


def interval(base: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    """The CONFIDENCE interval of median(new) / median(base) by moving-block bootstrap."""
    random = np.random.default_rng(0)
    logs = np.log(_medians(new, random)) - np.log(_medians(base, random))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.exp(np.quantile(logs, [tail, 1 - tail]))
    return float(low), float(high)


def _medians(samples: Sequence[float], random: np.random.Generator) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if len(values) > _MOST_SAMPLES:
        values = values[np.linspace(0, len(values) - 1, _MOST_SAMPLES).astype(np.int64)]
    n = len(values)
    block = max(1, round(math.sqrt(n)))
    starts = random.integers(0, n, size=(_RESAMPLES, -(-n // block)))
    # Blocks that pass the end go on at the beginning, so that every sample is drawn equally often.
    drawn = (starts[:, :, None] + np.arange(block)).reshape(_RESAMPLES, -1)[:, :n] % n
    return np.median(values[drawn], axis=1)


def judge(case: str, metric: Metric, base: Sequence[float], new: Sequence[float], threshold: float) -> Change:
    """The verdict on one metric from its values; a single value of a noisy metric cannot be sure of a change."""
    before, after = float(np.median(base)), float(np.median(new))
    if before <= 0 or after <= 0:
        note = "zero or negative values have no ratio"
        return Change(case, metric.name, metric.unit, UNSURE, threshold, before, after, note=note)
    ratio = after / before
    known = metric.exact or (len(base) > 1 and len(new) > 1)
    low, high = (ratio, ratio) if metric.exact or not known else interval(base, new)
    cost, least, most = (1 / ratio, 1 / high, 1 / low) if metric.higher_is_better else (ratio, low, high)
    worse, better = 1 + threshold, 1 / (1 + threshold)
    note = "" if known else "no samples to test"
    if cost > worse:
        verdict = SLOWER if known and least > 1 else UNSURE
    elif cost < better:
        verdict = FASTER if known and most < 1 else UNSURE
    else:
        verdict = SAME if most <= worse and least >= better else UNSURE
    if verdict == UNSURE and not note:
        note = "noise hides it: measure longer"
    noisy = known and not metric.exact
    return Change(
        case, metric.name, metric.unit, verdict, threshold, before, after, ratio,
        low if noisy else None, high if noisy else None, note,
    )  # fmt: skip


def compare(
    base: Measured, new: Measured, thresholds: Thresholds | None = None, cross_environment: bool = False
) -> Comparison:
    """Compares two results files, case by case and metric by metric.

    A case of BASE that is missing from NEW, or failed in it, is a regression.

    Raises: InputError when the files are of different kinds or environments (unless `cross_environment`), or a
        threshold is for cases that do not exist.
    """
    thresholds = thresholds or Thresholds()
    if base.kind != new.kind:
        raise InputError(f"not comparable: {base.path} is a {base.kind}, {new.path} a {new.kind}")
    differences = _differences(base.environment, new.environment)
    if differences and not cross_environment:
        raise InputError(
            f"not comparable: {'; '.join(differences)}. Measure both alike, or compare anyway with --cross-environment"
        )
    for pattern, _ in thresholds.patterns:
        if not any(_chosen(case, pattern) for case in [*base.cases, *new.cases]):
            known = dict.fromkeys(part for case in base.cases for part in re.split(r"::(?:test_)?|[/\[]", case))
            raise InputError(f"--threshold {pattern}=... matches no case; {nearest(pattern.strip('*'), known)}")
    changes = [change for case in base.cases for change in _case(case, base, new, thresholds.of(case))]
    changes.sort(key=lambda change: (ORDER.index(change.verdict), -abs(math.log(change.ratio or 1.0))))
    noted = _differences(base.noted, new.noted)
    return Comparison(changes, differences + noted, [case for case in new.cases if case not in base.cases])


def _differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return [
        f"{name} was {old.get(name, 'unknown')}, is {new.get(name, 'unknown')}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _case(case: str, base: Measured, new: Measured, threshold: float) -> list[Change]:
    before, after = base.cases[case], new.cases.get(case, Outcome("missing", "no such case in NEW"))
    if before.status != OK or after.status != OK:
        verdict = _status_verdict(before.status, after.status)
        note = f"{before.status} -> {after.status}"
        reason = after.reason or before.reason
        return [Change(case, "status", "", verdict, threshold, note=f"{note}: {reason}" if reason else note)]
    return [
        judge(case, metric, values, after.values[metric], threshold)
        if metric in after.values
        else Change(
            case, metric.name, metric.unit, UNSURE, threshold, float(np.median(values)), note="not measured in NEW"
        )
        for metric, values in before.values.items()
    ]


def _status_verdict(before: str, after: str) -> str:
    if after == OK:
        return FASTER
    if "not measured cleanly" in (before, after) and {before, after} <= {OK, "not measured cleanly"}:
        return UNSURE
    return SLOWER if before in (OK, "not measured cleanly") or after == "missing" else SAME
