"""What `vitbench certify` is told, each option once: here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option


@dataclass(frozen=True, kw_only=True)
class CertifyOptions:
    """Of `vitbench certify`."""

    budget: Annotated[float, Option(help="Seconds this call may take, over all stages.")] = 540.0
    stage: Annotated[
        str, Option(help="doctor, correctness, kernels, models, power, memory, prediction, or all; commas between.")
    ] = "all"
    device: Annotated[str, Option(help="cuda, or cpu for a small rehearsal. Default: cuda if there is one.")] = ""
    out: Annotated[Path | None, Option(metavar="DIR", help="Where to write. Default: results/<device>/certify.")] = None
