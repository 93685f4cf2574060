"""The one exception a user sees as a single line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """What the user gave cannot be used; the message says what is wrong and what would be right.

    The command line prints the message on one line and exits with code 2.
    """


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A phrase naming the entries of `known` closest to `name`, or all of them when there are few."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    if len(known) <= 12:
        return "allowed: " + ", ".join(known)
    return f"`vitbench list` shows the {len(known)} known names"
