"""Fills the tables of a Markdown file from results: `make readme`. A number in README is never typed.

A block `<!-- table: FILE -->` ... `<!-- end -->` holds the table of a vitbench CSV or a pytest-benchmark JSON, a block
`<!-- verdict: BEFORE AFTER -->` ... `<!-- end -->` what moved from one audit to another, a block
`<!-- kernels: AUDIT -->` ... `<!-- end -->` the table of kernels from an audit, a block
`<!-- kernel times: FILE -->` ... `<!-- end -->` how near modelled kernel times are to published ones, a block
`<!-- certified: FOLDERS -->` ... `<!-- end -->` the summary of every certification in the folders that match, or
nothing; blocks `<!-- memory: FILE -->` and `<!-- throughput: FILE -->` ... `<!-- end -->` how far predicted memory and
images a second are from published figures. Files are named from the page's folder.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path

from rich.console import Console

from vitbench.audit import baseline
from vitbench.audit.records import read_csv
from vitbench.audit.table import kernel_table
from vitbench.errors import InputError
from vitbench.memory import truth
from vitbench.predict import truth as throughput_truth
from vitbench.report.tables import sweep_table
from vitbench.results import journal

_VERDICT = re.compile(r"(<!-- verdict: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_KERNELS = re.compile(r"(<!-- kernels: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CERTIFIED = re.compile(r"(<!-- certified: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MEMORY = re.compile(r"(<!-- memory: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_THROUGHPUT = re.compile(r"(<!-- throughput: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_KERNEL_TIMES = re.compile(r"(<!-- kernel times: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _sweep(path: Path) -> str:
    text = io.StringIO()
    Console(file=text, width=200, markup=False, highlight=False).print(sweep_table(journal.read(path)))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _benchmarks(path: Path) -> str:
    lines = []
    for entry in json.loads(path.read_text())["benchmarks"]:
        name = entry["name"].removeprefix("test_")
        lines.append(f"{name:40} median {entry['stats']['median']:8.3f} s")
        lines += [f"    {key:36} {value}" for key, value in entry["extra_info"].items()]
    return "\n".join(lines)


def _verdict(before: Path, after: Path) -> str:
    return baseline.moved_table(baseline.compare(read_csv(before), read_csv(after)))


def _certified(root: Path, folders: str) -> str:
    """Summaries, one heading for each, two levels below their own."""
    found = sorted(path.parent for path in root.glob(f"{folders}/environment.csv"))
    if not found:
        return ""
    from vitbench.certify.summary import of_folder  # imports torch

    return "\n".join(re.sub(r"^(#+) ", r"##\1 ", of_folder(out), flags=re.MULTILINE) for out in found)


def fill(text: str, root: Path) -> str:
    """`text` with every block made anew from the files it names, relative to `root`.

    Raises: InputError when an audit is missing or is of another version.
    """

    def block(match: re.Match[str]) -> str:
        path = root / match[2]
        table = _benchmarks(path) if path.suffix == ".json" else _sweep(path)
        return f"{match[1]}```\n{table}\n```\n{match[3]}"

    def verdict(match: re.Match[str]) -> str:
        return f"{match[1]}```\n{_verdict(root / match[2], root / match[3])}\n```\n{match[4]}"

    def kernels(match: re.Match[str]) -> str:
        return f"{match[1]}{kernel_table(read_csv(Path(os.path.normpath(root / match[2]))))}\n{match[3]}"

    def certified(match: re.Match[str]) -> str:
        return f"{match[1]}{_certified(root, match[2])}{match[3]}"

    def memory(match: re.Match[str]) -> str:
        return f"{match[1]}```\n{truth.told(truth.read(root / match[2]))}\n```\n{match[3]}"

    def throughput(match: re.Match[str]) -> str:
        found = throughput_truth.read(root / match[2])
        return f"{match[1]}```\n{throughput_truth.summary(found)}\n```\n{match[3]}"

    def kernel_times(match: re.Match[str]) -> str:
        from vitbench.audit.truth import times  # imports torch

        return f"{match[1]}```\n{times.summary(times.TABLE.read(root / match[2]))}\n```\n{match[3]}"

    filled = _KERNEL_TIMES.sub(kernel_times, _MEMORY.sub(memory, _THROUGHPUT.sub(throughput, text)))
    return _CERTIFIED.sub(certified, _KERNELS.sub(kernels, _VERDICT.sub(verdict, _BLOCK.sub(block, filled))))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        try:
            filled = fill(page.read_text(encoding="utf-8"), page.parent)
        except InputError as error:
            sys.exit(f"vitbench: {page}: {error}")
        page.write_text(filled, encoding="utf-8")
