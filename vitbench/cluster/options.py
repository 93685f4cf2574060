"""What the commands of runs in shards are told. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vitbench.columns import Shown

RunFolder = Annotated[Path, Argument(metavar="RUN", help="The folder that `vitbench bench --executor` printed.")]


@dataclass(frozen=True, kw_only=True)
class StatusOptions(Shown):
    """Of `vitbench status`, as typed."""

    run: RunFolder
    follow: Annotated[bool, Option("--follow", help="Show rows as they come; Ctrl-C leaves, and the jobs go on.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Of `vitbench merge`, as typed."""

    run: RunFolder
    out: Annotated[Path | None, Option("--out", help="The CSV to write. Default: RUN/merged.csv.")] = None
    together: Annotated[
        bool, Option("--together", help="One CSV although rows come from different GPU types or software.")
    ] = False


__all__ = ["MergeOptions", "StatusOptions"]
