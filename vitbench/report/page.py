"""A sweep as one HTML page that needs nothing else: where it ran, its curves, every row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from vitbench import drawing
from vitbench.report import curves
from vitbench.report.tables import sweep_table
from vitbench.results.row import Row, environment_of


def _html_table(rows: Sequence[Row]) -> str:
    table = sweep_table(rows)
    head = "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns)
    lines = zip(*(list(column.cells) for column in table.columns), strict=True)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def write(rows: Sequence[Row], path: Path, title: str) -> None:
    """Writes the page; charts are drawn by scripts inside the file, so it opens anywhere, off line too."""
    charts = [chart for chart in (curves.throughput_chart(rows), curves.memory_chart(rows)) if chart is not None]
    where = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in environment_of(rows[0]).items() if text)
    drawn = "".join(drawing.embed(chart, number) for number, chart in enumerate(charts))
    script = drawing.bundle() if charts else ""
    parts = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<style>{drawing.STYLE}</style>{script}<h1>{escape(title)}</h1><dl>{where}</dl>{drawn}",
        f"<h2>Every case</h2><div class=scroll>{_html_table(rows)}</div></html>",
    )
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
