"""What `vitbench audit` is told, each option once: here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from vitbench.columns import Shown


@dataclass(frozen=True, kw_only=True)
class AuditOptions(Shown):
    """Of `vitbench audit`."""

    kernel: Annotated[
        str, Option(help="Launches: wildcards on kernel/case/pass/dtype, or parts of it, separated by commas.")
    ] = "*"
    arch: Annotated[str, Option(help="Architectures to compile for. Default: the card's, or sm_80,sm_90,sm_100.")] = ""
    card: Annotated[
        str, Option(help="Model the time on this card, such as 'RTX 4090'; `list` prints all that are known.")
    ] = ""
    kernels: Annotated[
        str, Option(help="Where kernels are registered: modules, packages or .py files, separated by commas.")
    ] = "vitkernels"
    show: Annotated[
        str, Option(metavar="CASE", help="Print resources, top costs, advice and hot loop of what matches.")
    ] = ""
    peers: Annotated[
        bool, Option("--peers", help="Passes beside kernels as people write them; exit 1 where ours is behind.")
    ] = False
    html: Annotated[
        Path | None,
        Option(metavar="FILE.html", help="With --show: the same as a page, with a timeline."),
    ] = None
    out: Annotated[Path | None, Option(metavar="FILE.csv", help="Also write the rows.")] = None
    baseline: Annotated[
        Path | None, Option(help="Earlier audit, a CSV or a folder of them: print what moved, exit 1 if slower.")
    ] = None
    accept: Annotated[Path | None, Option(metavar="FOLDER", help="Write this audit as the new baseline.")] = None
    markdown: Annotated[Path | None, Option(metavar="FILE", help="With --baseline: what moved, as Markdown.")] = None
    validate: Annotated[
        Path | None, Option(metavar="RESULTS", help="Measured kernels, CSV or JSON: how well the model ranks them.")
    ] = None
    compile_only: Annotated[
        bool,
        Option(
            "--compile-only", help="Only check that all compile, without spills, to --baseline's matrix instruction."
        ),
    ] = False
    part: Annotated[str, Option(metavar="K/N", help="Only the K-th of N parts of all launches.")] = "1/1"
    processes: Annotated[int, Option(help="Compiling processes. Default: the number of CPUs.")] = 0
    triton: Annotated[Path | None, Option(metavar="FOLDER", help="Compile with the triton package in this folder.")] = (
        None
    )
