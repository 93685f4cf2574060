"""The report as one HTML page that needs nothing else and asks the network for nothing.

The page holds each row once, as columns; pictures are specifications and row numbers, drawn from those columns when
they come into view. Scripts run only if their hash is in the page's own policy, so markup in a result file cannot.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from vitbench import drawing
from vitbench.report import reading
from vitbench.report.change import Change
from vitbench.report.figures import MOST, Figure, Section
from vitbench.report.kinds import KINDS, Kind
from vitbench.report.reading import Results
from vitbench.report.sections import compute, energy, kernels, memory, pareto, speed
from vitbench.results.row import TABLE, Row

_HERE = Path(__file__).parent
_SECTIONS = (memory, speed, pareto, energy, kernels, compute)


def sections(results: Results) -> list[Section]:
    """All sections of the report, in its order."""
    return [module.section(results) for module in _SECTIONS]


def write(rows: Sequence[Row], path: Path, title: str) -> None:
    """Writes the page of one sweep."""
    results = reading.of_rows(TABLE.texts(row) for row in rows)
    path.write_text(html(results, sections(results), title), encoding="utf-8", errors="backslashreplace")


def html(results: Results, parts: Sequence[Section], title: str, changes: Sequence[Change] = ()) -> str:
    """The page's text."""
    figures = [figure for part in parts for figure in part.figures]
    sets: dict[tuple[object, ...], dict[str, Any]] = {}
    data = {
        "most": MOST,
        "kinds": [_table(kind, frame) for name, kind in KINDS.items() if len(frame := results.frames[name])],
        "figures": [_figure(figure, sets) for figure in figures],
        "sets": list(sets.values()),
    }
    scripts = [drawing.libraries(), (_HERE / "page.js").read_text(encoding="utf-8")]
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes} 'unsafe-eval'"
    named = "".join(
        f'<a href="#{part.name}">{escape(part.title)}</a>' for part in [*_change_first(parts, changes), *parts]
    )
    body = (
        f"<h1>{escape(title)}</h1>",
        "<noscript><p>This page needs JavaScript; summary.md beside it does not.</noscript>",
        f'<nav aria-label="Sections">{named}<a href="#rows">Every row</a></nav>',
        _notes(results),
        _FILTERS,
        *(_change(changes) if changes else ()),
        *(_section(part) for part in parts),
        _ROWS,
    )
    return "\n".join(
        (
            "<!doctype html><html lang=en><meta charset=utf-8>",
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name=viewport content="width=device-width, initial-scale=1"><link rel=icon href="data:,">',
            f"<title>{escape(title)}</title><style>{style}{drawing.CHARTS}</style>",
            *body,
            f"<script id=data type=application/json>{_json(data)}</script>",
            *(f"<script>{script}</script>" for script in scripts),
            "</html>\n",
        )
    )


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: object) -> str:
    """JSON that no HTML parser takes for markup."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _table(kind: Kind, frame: pd.DataFrame) -> dict[str, Any]:
    columns = []
    for name in (*kind.shown, *(("file",) if frame["file"].nunique() > 1 else ())):
        values = frame[name]
        if name in kind.numbers:
            numbers = [None if value != value else _short(value) for value in values.tolist()]
            columns.append({"name": name, "used": any(n is not None for n in numbers), "values": numbers})
        else:
            codes, texts = pd.factorize(values)
            used = any(texts)
            columns.append({"name": name, "used": used, "texts": list(texts), "values": codes.tolist()})
    return {"title": kind.title, "start": int(frame.index[0]), "size": len(frame), "columns": columns}


def _short(value: float) -> float | int:
    """Five digits, a whole number without a point."""
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _figure(figure: Figure, sets: dict[tuple[object, ...], dict[str, Any]]) -> dict[str, Any]:
    """A picture; rows and curves that several pictures have stand once, in `sets`."""
    key = (tuple(figure.rows), tuple(figure.series))
    if key not in sets:
        codes, names = pd.factorize(pd.Series(list(figure.series), dtype=object))
        sets[key] = {"rows": list(figure.rows)} | (
            {"series": codes.tolist(), "names": list(names)} if figure.series else {}
        )
    return {
        "name": figure.name,
        "caption": figure.caption,
        "spec": figure.spec(),
        "notes": list(figure.notes),
        "set": list(sets).index(key),
    }


def _section(part: Section) -> str:
    drawn = "".join(
        f"<figure><h3>{escape(figure.title)}</h3>"
        f'<div class=chart id="chart-{escape(figure.name)}" tabindex=0 role=group '
        f'aria-label="{escape(figure.title)}. Arrow keys step through its points, Enter goes to a row."></div>'
        f'<figcaption id="said-{escape(figure.name)}" aria-live=polite>{escape(figure.caption)}</figcaption></figure>'
        for figure in part.figures
    )
    return (
        f'<section id="{part.name}"><h2>{escape(part.title)}</h2>'
        + (f"<div class=figures>{drawn}</div>" if drawn else "")
        + _list(part.facts, "In numbers")
        + "".join(f"<p class=missing>{_text(text)}</p>" for text in part.missing)
        + "</section>"
    )


def _text(text: str) -> str:
    """Escaped, and what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _list(texts: Sequence[str], title: str) -> str:
    items = "".join(f"<li>{_text(text)}" for text in texts)
    return f"<details open><summary>{title}</summary><ul>{items}</ul></details>" if items else ""


def _notes(results: Results) -> str:
    where = "".join(
        f"<details><summary>{escape(', '.join(files) or 'Where and with what')}: {escape(values['device_name'])}"
        f"</summary>{_terms(values)}</details>"
        for values, files in results.machines()
    )
    return where + _list(results.notes, "What is missing from this page")


def _terms(values: Mapping[str, str]) -> str:
    return (
        f"<dl class=environment>{''.join(f'<dt>{escape(n)}</dt><dd>{escape(v)}</dd>' for n, v in values.items())}</dl>"
    )


def _change_first(parts: Sequence[Section], changes: Sequence[Change]) -> list[Section]:
    return [Section(name="change", title="Change")] if changes else []


def _change(changes: Sequence[Change]) -> list[str]:
    told = ["<section id=change><h2>Change</h2>"]
    for change in changes:
        told.append(f"<h3>{escape(change.title)}</h3><p>{escape(change.conclusion)}</p>")
        told.append(_list(change.differences, "Not measured alike"))
        lines = "".join(
            f"<tr class='{escape(cells[0])}'>{''.join(f'<td class=text>{escape(cell)}</td>' for cell in cells)}</tr>"
            for cells in change.lines
        )
        if lines:
            head = "".join(f"<th scope=col class=text>{escape(name)}</th>" for name in change.columns)
            table = f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
            told.append(f"<div class=scroll tabindex=0>{table}</div>")
    return [*told, "</section>"]


_FILTERS = """<form class=filters aria-label="Filter rows and pictures">
<label>model<select id=model><option value="">all</option></select></label>
<label>implementation<select id=impl><option value="">all</option></select></label>
<label>dtype<select id=dtype><option value="">all</option></select></label>
<label>text<input id=text type=search placeholder="words of a row"></label>
<button id=clear type=button>Clear</button></form>"""
_ROWS = """<section id=rows><h2>Every row</h2><div class=tabs id=tabs></div>
<div class=pager><button id=back type=button>Back</button><button id=on type=button>On</button>
<span id=count aria-live=polite></span></div><div class=scroll id=table tabindex=0 role=region aria-label="Rows"><table>
<thead id=head></thead><tbody id=body></tbody></table></div></section>"""

__all__ = ["html", "sections", "write"]
