"""Which cases tell most, about how long they take, and what a default sweep leaves out. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vitbench import selection
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case, group
from vitbench.errors import InputError
from vitbench.ops.names import COMPILED

#: Seconds that a sweep takes in which nothing but models, dtypes and modes was asked for.
DEFAULT_BUDGET = {"cuda": 600.0, "cpu": 180.0}
#: One image, and a batch that fills a GPU.
BATCHES = (1, 64)
HALF = ("bf16", "amp", "fp16")


@dataclass(frozen=True)
class Cost:
    """What a case costs beside its steps in seconds, what compiling adds, and how fast steps are, in GMAC/s.

    Rough on purpose: it says minutes or hours. On the CPU of the models in results/ at two threads; on a GPU building,
    verifying and memory take 2 s, and energy 5 s of repeated steps.
    """

    fixed_s: float
    compile_s: float
    gmac_per_s: float
    steps: int


COSTS = {"cuda": Cost(7.0, 45.0, 5000.0, 30), "cpu": Cost(1.0, 40.0, 20.0, 10)}
#: For models of other libraries, which are not counted before they are built.
_UNKNOWN_GMACS = 5.0


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" else "cuda"


def seconds(case: Case, options: SweepOptions) -> float:
    """About how long a case takes, from build to row."""
    cost, known = COSTS[_kind(case.device)], selection.entry(case.model)
    area = math.prod(case.resolution) / math.prod(known.resolution)
    gmacs = (known.gmacs or _UNKNOWN_GMACS) * area * case.batch * (3 if case.mode == "train" else 1)
    step = gmacs / cost.gmac_per_s
    samples = min(max(options.min_time, 10 * step), options.max_time) + step
    compiling = cost.compile_s if case.impl in COMPILED else 0.0
    return cost.fixed_s + cost.steps * step + samples + compiling


def _distance(case: Case, halves: bool) -> tuple[int, int]:
    """How far a case is from what tells most: at its native size, one image or 64, half precision, inference."""
    native = case.resolution == selection.entry(case.model).resolution
    away = (not native) + (case.batch not in BATCHES) + (halves and case.dtype not in HALF) + (case.mode == "train")
    return away, case.batch not in BATCHES


def ordered(cases: Sequence[Case]) -> list[Case]:
    """The same cases, most telling first, models in turn; those that differ only in implementation stay together."""
    halves = any(case.dtype in HALF for case in cases)
    groups = sorted(group(cases), key=lambda members: _distance(members[0], halves))
    return [case for members in groups for case in members]


def worth_compiling(case: Case, dtypes: Sequence[str]) -> bool:
    """Whether a default sweep compiles a case: at its native size, one image or 64, in half precision if any is."""
    dtype = next((one for one in HALF if one in dtypes), None)
    native = case.resolution == selection.entry(case.model).resolution
    return native and case.batch in BATCHES and dtype in (None, case.dtype)


def within(cases: Sequence[Case], budget: float, options: SweepOptions) -> list[Case]:
    """The most telling cases that take about `budget` seconds, some of every model, in the order that they came in."""
    kept: set[str] = set()
    models: set[str] = set()
    left = budget
    for members in group(ordered(cases)):
        left -= sum(seconds(case, options) for case in members)
        if left >= 0 or members[0].model not in models:
            models.add(members[0].model)
            kept.update(case.id for case in members)
    return [case for case in cases if case.id in kept]


def total(cases: Iterable[Case], options: SweepOptions) -> float:
    """About how many seconds cases take, the start of the worker included."""
    return 5.0 + sum(seconds(case, options) for case in cases)


def parse_duration(text: str, option: str = "--budget") -> float:
    """Seconds of "90", "90s", "10m", "1h30m".

    Raises: InputError.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip().lower())
    hours, minutes, rest = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    if not (duration := hours * 3600 + minutes * 60 + rest):
        raise InputError(f"{option} {text!r} is no time above zero such as 10m, 90s or 1h30m")
    return duration


__all__ = ["DEFAULT_BUDGET", "ordered", "parse_duration", "seconds", "total", "within", "worth_compiling"]
