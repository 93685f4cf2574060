"""What `vitbench fuse-report` is told, each option once: here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vitbench.columns import Shown


@dataclass(frozen=True, kw_only=True)
class FuseReportOptions(Shown):
    """Of `vitbench fuse-report`."""

    model: Annotated[
        str, Argument(metavar="MODELS", help="Names or wildcards of a library, separated by commas: 'timm:swin*'.")
    ]
    resolution: Annotated[str, Option(help="Sizes such as 224, `native`, or factors of it such as x1.5.")] = "native"
    gpu: Annotated[
        str, Option(help="The card of which times are predicted; `vitbench predict --gpu list` has all.")
    ] = "RTX 4090"
    batch: Annotated[int, Option(help="The batch of which times are predicted.")] = 256
    format: Annotated[str, Option(help="table, csv or json.")] = "table"
    out: Annotated[Path | None, Option(metavar="DIR", help="Also write fuse-report.csv there.")] = None
