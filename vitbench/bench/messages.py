"""What a sweep and its worker tell each other. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.results.row import Found


@dataclass(frozen=True, slots=True)
class Group:
    """To the worker: cases that differ only in implementation, and how to measure them."""

    cases: list[Case]
    options: SweepOptions


@dataclass(frozen=True, slots=True)
class Phase:
    """From the worker: what it does now, and with which case; None is all of the group."""

    case: str | None
    what: str


@dataclass(frozen=True, slots=True)
class Result:
    """From the worker: what it found out about a case, and its latency samples in ms."""

    case: str
    found: Found
    samples_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Done:
    """From the worker: the group is over; `poisoned` where the device is broken for its process."""

    poisoned: bool


Message = Phase | Result | Done

__all__ = ["Done", "Group", "Message", "Phase", "Result"]
