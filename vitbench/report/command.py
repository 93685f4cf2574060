"""`vitbench report RESULTS.csv... --out DIR`: the page, its pictures and a summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitbench import drawing
from vitbench.console import console
from vitbench.errors import InputError
from vitbench.report import change, page, reading, summary
from vitbench.report.kinds import KINDS

TITLE = "vitbench report"


def run(files: Sequence[Path], out: Path, against: Path | None = None) -> None:
    """Writes index.html, summary.md and a PNG and an SVG of every picture; prints what is missing from them.

    Raises: InputError when a file does not exist or none has a row, or nothing can be drawn or written.
    """
    if drawing.plotting_missing():
        raise InputError(f"the report's pictures need altair and vl-convert: {drawing.INSTALL}")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder")
    results = reading.read(files)
    changes = change.since(against, files) if against else []
    parts = page.sections(results)
    out.mkdir(parents=True, exist_ok=True)
    for name, make in (("index.html", page.html), ("summary.md", summary.markdown)):
        text = make(results, parts, TITLE, changes)
        (out / name).write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be text
    figures = [figure for part in parts for figure in part.figures]
    for figure in figures:
        kind = KINDS[figure.kind]
        drawing.save_specification(figure.drawn(results.frames[kind.name], kind.shown), out / figure.name)
    printer = console()
    for note in [*results.notes, *(text for one in changes for text in (one.title, one.conclusion, *one.differences))]:
        printer.print(note, soft_wrap=True)
    printer.print(
        f"wrote {out / 'index.html'}, {out / 'summary.md'} and {len(figures)} pictures as PNG and SVG", soft_wrap=True
    )


__all__ = ["TITLE", "run"]
