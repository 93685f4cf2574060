"""What a stage of the certification is: it measures into CSV files, and judges from those files alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"


@dataclass(frozen=True)
class Line:
    """One line of the summary: what was to be shown, PASS, FAIL or NOT_RUN, and the figures or the reason."""

    what: str
    verdict: str
    detail: str


@dataclass(frozen=True)
class Context:
    """Where results go and what they are measured on, "cpu" or "cuda"."""

    out: Path
    device: str

    @property
    def small(self) -> bool:
        """Whether this is a rehearsal without a GPU: few cases, small ones, and no claim about speed."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Stage:
    """One of the seven.

    `share` is its part of the time, relative to the stages after it; run(context, deadline) measures what its files
    do not hold yet until time.monotonic() passes `deadline` and says whether it was interrupted; judge(context)
    reads the files.
    """

    name: str
    title: str
    share: float
    run: Callable[[Context, float], bool]
    judge: Callable[[Context], list[Line]]


def verdict(holds: bool) -> str:
    return PASS if holds else FAIL


__all__ = ["FAIL", "NOT_RUN", "PASS", "Context", "Line", "Stage", "verdict"]
