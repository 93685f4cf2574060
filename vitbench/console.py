"""The one way to print: plain text as it is, wide enough for a table when it goes to a file."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """A console that takes brackets in messages literally and does not fold tables in a pipe."""
    return Console(width=None if sys.stdout.isatty() else 220, markup=False, highlight=False, emoji=False)
