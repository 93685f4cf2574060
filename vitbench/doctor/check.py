"""One thing that was tried, and how it ended. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from vitbench.results.table import Table

OK, FAILED, ABSENT, LATE = "ok", "FAILED", "not here", "too late"


class Absent(Exception):
    """The machine does not have what was to be tried, which is no fault."""


@dataclass(frozen=True, slots=True)
class Check:
    """`result` is OK, FAILED, ABSENT, or LATE where the time ended; `detail` the figures, or what is wrong."""

    what: str
    result: str
    seconds: float
    detail: str


TABLE = Table(Check, "a list of checks", number="{:.3f}".format)


def attempt(what: str, call: Callable[[], str]) -> Check:
    """Tries what `call` does; it returns the figures, and what it raises is the detail."""
    start = time.monotonic()
    try:
        result, detail = OK, call()
    except Absent as why:
        result, detail = ABSENT, str(why)
    except Exception as error:  # a check is there to tell of every failure
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        result, detail = FAILED, f"{type(error).__name__}: {text[:300]}"
    return Check(what, result, time.monotonic() - start, detail)
