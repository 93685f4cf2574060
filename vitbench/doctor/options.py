"""What `vitbench doctor` is told, each option once: here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from typer import Option

from vitbench.columns import Shown


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Shown):
    """Of `vitbench doctor`."""

    deep: Annotated[
        bool,
        Option("--deep", help="Also try it, in a minute: count, predict, build, verify, time, energy, every kernel."),
    ] = False
    device: Annotated[str, Option(help="Of --deep: cpu, cuda or cuda:N. Default: cuda where there is a GPU.")] = ""
