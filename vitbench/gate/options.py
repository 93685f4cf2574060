"""What `vitbench compare` and `vitbench gate` are told, each option once: here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vitbench.columns import Shown

#: vitbench's own, which take the device as an option.
BENCHMARKS = Path("tests/vitkernels/bench_kernels.py")

Threshold = Annotated[
    list[str] | None,
    Option(help="What matters: 5% for all (the default), 'attention*=3%' for what matches. May be repeated."),
]
Markdown = Annotated[
    Path | None, Option(metavar="FILE", help="Also write Markdown for a pull request; - prints it instead.")
]
Json = Annotated[Path | None, Option("--json", metavar="FILE", help="Also write JSON; - prints it instead.")]


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Shown):
    """Of `vitbench compare`."""

    base: Annotated[Path, Argument(metavar="BASE", help="A vitbench CSV or a pytest-benchmark JSON.")]
    new: Annotated[Path, Argument(metavar="NEW", help="The same kind of file, measured later.")]
    threshold: Threshold = None
    markdown: Markdown = None
    json: Json = None
    cross_environment: Annotated[
        bool, Option("--cross-environment", help="Compare although GPU, driver, torch or triton differ.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class GateOptions(Shown):
    """Of `vitbench gate`."""

    against: Annotated[str, Option(metavar="REF", help="The commit, branch or tag to compare with.")] = ""
    baseline: Annotated[
        Path | None, Option(metavar="FILE", help="Instead: a benchmark JSON that this same machine wrote earlier.")
    ] = None
    device: Annotated[
        str, Option(help="cpu or cuda: measure there. Default: cuda where there is a GPU, else audit machine code.")
    ] = ""
    rounds: Annotated[int, Option(help="How often each commit's benchmarks are run.")] = 2
    benchmarks: Annotated[
        Path, Option(metavar="PATH", help="What to measure: any pytest-benchmark file or folder of the checkout.")
    ] = BENCHMARKS
    threshold: Threshold = None
    markdown: Markdown = None
    json: Json = None
    kernel: Annotated[str, Option(help="Without a GPU: which launches to audit, as for audit.")] = "*"
    arch: Annotated[str, Option(help="Without a GPU: architectures, as for audit.")] = "sm_80,sm_90,sm_100"
    kernels: Annotated[str, Option(help="Without a GPU: where kernels are registered.")] = "vitkernels"

    @property
    def audited(self) -> list[str]:
        """The options that `vitbench audit` has too, as it is given them."""
        return ["--kernel", self.kernel, "--arch", self.arch, "--kernels", self.kernels]
