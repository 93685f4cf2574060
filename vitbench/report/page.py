"""A sweep as one HTML page that needs nothing else: where it ran, its curves, every row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from vitbench.report import curves
from vitbench.report.tables import sweep_table
from vitbench.results.row import Row, environment_of

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .15rem .6rem; text-align: right }
th { border-bottom: 1px solid #999; position: sticky; top: 0; background: #fff }
td:first-child, th:first-child { text-align: left }
.scroll { overflow-x: auto } tr:nth-child(even) td { background: #f5f6f8 } dt { font-weight: 600 } dd { margin: 0 }
dl { display: grid; grid-template-columns: 10rem 1fr; gap: .1rem 1rem }
"""


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
    drawn = "".join(_embed(chart, number) for number, chart in enumerate(charts))
    script = _bundle() if charts else ""
    parts = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>{script}<h1>{escape(title)}</h1><dl>{where}</dl>{drawn}",
        f"<h2>Every case</h2><div class=scroll>{_html_table(rows)}</div></html>",
    )
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _bundle() -> str:
    """The plotting libraries themselves, once for all charts of the page."""
    import vl_convert

    libraries = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub asks for a snippet
    return f"<script>{libraries}</script>"


def _embed(chart: object, number: int) -> str:
    import altair as alt

    assert isinstance(chart, alt.TopLevelMixin)
    specification = chart.to_json(indent=None).replace("</", "<\\/")
    return f'<div id="chart{number}"></div><script>vegaEmbed("#chart{number}", {specification})</script>'
