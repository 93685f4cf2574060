"""Fills the tables of Markdown pages from results: `make readme`. A number in them is never typed.

A block `<!-- WHAT: FILES -->` ... `<!-- end -->` holds what is made of its files, named from the page's folder:

- table: the rows of a vitbench CSV, those alone that a filter leaves where one follows it, or a pytest-benchmark JSON;
- columns: what the columns of that CSV's table mean; standouts: what stands out in it, or in what a filter leaves;
- verdict: what moved from one audit to another; kernels: the table of kernels from an audit; peers: ours beside
  kernels as people write them;
- kernel times, memory, throughput: how far what is modelled or predicted is from published figures;
  throughput errors: the same without other layouts and the farthest families;
- certified: the summary of every certification in the folders that match;
- options: every command of the command line with its options.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitbench import columns, markdown
from vitbench.audit import baseline
from vitbench.audit.records import read_csv
from vitbench.audit.table import kernel_table
from vitbench.columns import Column, Shown
from vitbench.errors import InputError, nearest
from vitbench.memory import truth
from vitbench.predict import truth as throughput_truth
from vitbench.report.standouts import standouts
from vitbench.report.tables import explained, sweep_columns
from vitbench.results import journal

_BLOCK = re.compile(r"(<!-- ([a-z ]+): (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(path: Path, filter: str = "") -> str:
    if path.suffix == ".json":
        return _benchmarks(path)
    return columns.text(columns.chosen(sweep_columns(journal.read(path)), Shown(filter=filter)))


def _standouts(path: Path, filter: str = "") -> str:
    rows = journal.read(path)
    named = [*columns.choose([*sweep_columns(rows), Column("row", rows)], filter=filter)][-1].values
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in standouts(named))


def _benchmarks(path: Path) -> str:
    lines = []
    for entry in json.loads(path.read_text())["benchmarks"]:
        name = entry["name"].removeprefix("test_")
        lines.append(f"{name:40} median {entry['stats']['median']:8.3f} s")
        lines += [f"    {key:36} {value}" for key, value in entry["extra_info"].items()]
    return "\n".join(lines)


def _kernel_times(path: Path) -> str:
    from vitbench.audit.truth import times  # imports torch

    return times.summary(times.TABLE.read(path))


def _throughput_errors(path: Path) -> str:
    found = throughput_truth.statistics(throughput_truth.read(path))
    return throughput_truth.told([one for one in found if one.rare == "all" and one.held_out != "layout"])


def _peers(path: Path) -> str:
    from vitbench.audit.peers import table  # imports torch

    return table.page(table.TABLE.read(path))


def _certified(folders: Path) -> str:
    """Summaries, one heading for each, two levels below their own."""
    root = Path(folders.anchor or ".")
    found = sorted(path.parent for path in root.glob(f"{folders.relative_to(root)}/environment.csv"))
    if not found:
        return ""
    from vitbench.certify.summary import of_folder  # imports torch

    return "\n".join(re.sub(r"^(#+) ", r"##\1 ", of_folder(out), flags=re.MULTILINE) for out in found)


def _options(pattern: str) -> str:
    """A section for each command that matches: what it does, and its options."""
    from typer.main import get_command

    from vitbench.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    chosen = {name: about for name, about in commands.items() if fnmatch.fnmatchcase(name, pattern)}
    return "\n\n".join(_section(name, about) for name, about in chosen.items())


def _section(name: str, about: Any) -> str:
    rows = []
    for one in about.params:
        called = one.metavar or one.name.upper() if one.param_type_name == "argument" else ", ".join(one.opts)
        default = "" if one.default in (None, "", False, ()) else markdown.code(str(one.default))
        rows.append((markdown.code(called), default, markdown.plain(one.help)))
    told = ["", *markdown.table(("option", "default", ""), rows)] if rows else []
    return "\n".join([f"## vitbench {name}", "", markdown.plain(about.help), *told])


#: What fills a block, from its files; text, or Markdown.
_TEXT: dict[str, Callable[..., str]] = {
    "table": _table,
    "columns": lambda path: "\n".join(explained(columns.filled(sweep_columns(journal.read(path))))),
    "standouts": _standouts,
    "verdict": lambda before, after: baseline.moved_table(baseline.compare(read_csv(before), read_csv(after))),
    "kernel times": _kernel_times,
    "memory": lambda path: truth.told(truth.read(path)),
    "throughput": lambda path: throughput_truth.summary(throughput_truth.read(path)),
    "throughput errors": _throughput_errors,
}
_MARKDOWN: dict[str, Callable[..., str]] = {
    "kernels": lambda path: kernel_table(read_csv(path)),
    "peers": _peers,
    "certified": _certified,
    "options": lambda path: _options(path.name),
}
#: Every kind of block.
KINDS = (*_TEXT, *_MARKDOWN)


def fill(text: str, root: Path) -> str:
    """`text` with every block made anew from the files it names, relative to `root`.

    Raises: InputError on a block of no known kind, or when a file is missing or is of another version.
    """

    def block(match: re.Match[str]) -> str:
        head, what, named, end = match.groups()
        if what not in KINDS:
            raise InputError(f"no block is called {what!r}: {nearest(what, KINDS)}")
        words = [word if "=" in word else Path(os.path.normpath(root / word)) for word in named.split()]
        if what in _TEXT:
            return f"{head}```\n{_TEXT[what](*words)}\n```\n{end}"
        made = _MARKDOWN[what](*words).rstrip("\n")
        return f"{head}{made}\n{end}" if made else head + end

    return _BLOCK.sub(block, text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        try:
            filled = fill(page.read_text(encoding="utf-8"), page.parent)
        except InputError as error:
            sys.exit(f"vitbench: {page}: {error}")
        page.write_text(filled, encoding="utf-8")
