"""What is refused by name: bad input, which ends a command, and a case that cannot be served, which is a row."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """What the user gave cannot be used; the message says what is wrong and what would be right.

    The command line prints the message on one line and exits with code 2.
    """


class Unsupported(Exception):
    """This machine or this implementation cannot run a case, and says so by name; the message says why.

    Only what raises this is "unsupported". Torch's NotImplementedError is not enough: a counter that fails raises that
    too, and a fault of ours must not pass for a limit of the case.
    """


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A phrase naming the entries of `known` closest to `name`, or all of them when there are few."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    if len(known) <= 40:
        return "allowed: " + ", ".join(known)
    return f"`vitbench list` shows the {len(known)} known names"
