"""A comparison as a table on a terminal, as Markdown for a pull request, and as JSON for a program."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitbench import columns
from vitbench.columns import Column, Kind, Shown
from vitbench.gate.compare import ORDER, SAME, Change, Comparison
from vitbench.markdown import plain
from vitbench.markdown import table as markdown_table

_STYLE = {"slower": "red", "faster": "green", "unsure": "yellow", "same": ""}
COLUMNS = ("verdict", "case", "metric", "base", "new", "change", "interval", "note")
_RIGHT = ("base", "new", "change", "interval")


def _value(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.4g} {unit}"


def _share(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio - 1:+.1%}"


def label(case: str) -> str:
    """The case without what all share: of a benchmark's full name, file and `test_` go."""
    return case.rpartition("::")[2].removeprefix("test_").removeprefix("bench_")


def cells(change: Change) -> tuple[str, ...]:
    """A change by COLUMNS."""
    spread = "" if change.low is None or change.high is None else f"{_share(change.low)} .. {_share(change.high)}"
    return (
        change.verdict,
        label(change.case),
        change.metric,
        _value(change.base, change.unit),
        _value(change.new, change.unit),
        _share(change.ratio),
        spread,
        change.note,
    )


def conclusion(result: Comparison) -> str:
    """One line: the verdict, and how many comparisons came to which."""
    counts = Counter(change.verdict for change in result.changes)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict])
    cases = len({change.case for change in result.changes})
    added = f"; {len(result.added)} cases are only in NEW" if result.added else ""
    return f"{result.verdict}: {cases} cases compared, {told}{added}"


def table(result: Comparison) -> list[Column]:
    """Every comparison, worst first."""
    kinds: dict[str, Kind] = {"verdict": "word", "metric": "word", "case": "key", "note": "note"}
    values = list(zip(*map(cells, result.changes), strict=True)) or [()] * len(COLUMNS)
    found = {
        name: Column(name, of_all, kinds.get(name, "number")) for name, of_all in zip(COLUMNS, values, strict=True)
    }
    found["verdict"] = replace(found["verdict"], style=lambda verdict: _STYLE[verdict])
    return [found[name] for name in ("verdict", "case", "metric", "change", "interval", "base", "new", "note")]


def markdown(result: Comparison) -> str:
    """What moved as a table, what did not folded away beneath."""
    lines = [f"**vitbench compare: {conclusion(result)}**", ""]
    lines += [f"- differs: {plain(text)}" for text in result.differences]
    lines += [""] if result.differences else []
    moved = [change for change in result.changes if change.verdict != SAME]
    same = [change for change in result.changes if change.verdict == SAME]
    lines += _markdown_table(moved)
    if same:
        lines += ["", f"<details><summary>{len(same)} the same</summary>", "", *_markdown_table(same), "", "</details>"]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(changes: list[Change]) -> list[str]:
    if not changes:
        return []
    return markdown_table(COLUMNS, [[plain(cell) for cell in cells(change)] for change in changes], _RIGHT)


def as_json(result: Comparison) -> str:
    record: dict[str, Any] = {
        "verdict": result.verdict,
        "exit_code": result.exit_code,
        "differences": result.differences,
        "added": result.added,
        "changes": [dataclasses.asdict(change) for change in result.changes],
    }
    return json.dumps(record, indent=1) + "\n"


def emit(
    result: Comparison, markdown_to: Path | None = None, json_to: Path | None = None, asked: Shown = columns.ALL
) -> None:
    """Prints what is asked of the table, or in its place what is to go to `-`; writes the files asked for."""
    from vitbench.console import console

    texts = [(path, make) for path, make in ((markdown_to, markdown), (json_to, as_json)) if path]
    for path, make in texts:
        if str(path) == "-":
            print(make(result), end="")
        else:
            path.write_text(make(result), encoding="utf-8")
    if not any(str(path) == "-" for path, _ in texts):
        out = console()
        for text in result.differences:
            out.print(f"differs: {text}")
        columns.show(table(result), asked)
        out.print(conclusion(result))
