"""The report as Markdown: figures in words, links to the pictures, what failed and why."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from vitbench.markdown import plain, table
from vitbench.report.change import Change
from vitbench.report.figures import Section
from vitbench.report.kinds import KINDS
from vitbench.report.reading import Results

#: Failed rows that are listed at most.
FAILED = 50


def markdown(results: Results, parts: Sequence[Section], title: str, changes: Sequence[Change] = ()) -> str:
    """The text of summary.md, beside the page and the pictures."""
    lines = [f"# {plain(title)}", "", "[The page](index.html) has every row, filters, and pictures that answer.", ""]
    rows = [(plain(kind.title), str(len(results.frames[name]))) for name, kind in KINDS.items()]
    lines += _table(("rows", "count"), [row for row in rows if row[1] != "0"])
    for values, files in results.machines():
        told = ", ".join(f"{name} {value}" for name, value in values.items() if name != "device_name")
        lines.append(f"- {plain(', '.join(files))}: {plain(values['device_name'])}; {plain(told)}")
    lines += [f"- {plain(note)}" for note in results.notes] + [""]
    for change in changes:
        lines += [f"## Change: {plain(change.title)}", "", plain(change.conclusion), ""]
        lines += [f"- differs: {plain(text)}" for text in change.differences] + [""]
        lines += _table(change.columns, [[plain(cell) for cell in cells] for cells in change.lines])
    for part in parts:
        lines += [f"## {plain(part.title)}", ""]
        lines += [f"- {plain(fact)}" for fact in part.facts]
        lines += [f"- {text}" for text in part.missing] + [""]
        lines += [
            f"![{plain(figure.title)}]({figure.name}.png)\n\n{plain(figure.caption)}\n" for figure in part.figures
        ]
    failed = results.frames["sweep"]
    failed = failed[~failed["status"].isin(["ok", ""])]
    if len(failed):
        lines += [f"## Failed: {len(failed)} of {len(results.frames['sweep'])} cases", ""]
        lines += _table(("case", "status", "reason"), [_failure(row) for _, row in failed.head(FAILED).iterrows()])
        if len(failed) > FAILED:
            lines.append(f"and {len(failed) - FAILED} more, which the page has")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _failure(row: pd.Series) -> list[str]:
    case = row["case"] or f"{row['model']} {row['impl']} batch {row['batch']:g}"
    return [plain(case), plain(row["status"]), plain(row["reason"])]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*table(columns, rows), ""] if rows else []


__all__ = ["FAILED", "markdown"]
