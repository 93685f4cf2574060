"""Whether pictures can be drawn here, and how charts become files and pages."""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from vitbench.cache import cache_folder

INSTALL = "pip install altair vl-convert-python"


def plotting_missing() -> bool:
    """Whether the plotting packages are not installed; a measuring machine may lack them."""
    return any(importlib.util.find_spec(name) is None for name in ("altair", "vl_convert"))


def save(chart: Any, stem: Path) -> list[Path]:
    """Writes a chart as stem.png and stem.svg, without a browser."""
    return save_specification(specification(chart), stem)


def specification(chart: Any) -> dict[str, Any]:
    """Of Vega-Lite, with its data, not validated: Vega finds faults too, sooner."""
    found: dict[str, Any] = chart.to_dict(validate=False)
    return found


def save_specification(found: dict[str, Any], stem: Path) -> list[Path]:
    """Writes a Vega-Lite specification with its data as stem.png and stem.svg."""
    import vl_convert

    png, svg = files = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    text = vl_convert.vegalite_to_svg(found)
    svg.write_text(text, encoding="utf-8")
    png.write_bytes(vl_convert.svg_to_png(text, ppi=144))
    _shrink(png)
    return files


def _shrink(path: Path) -> None:
    """A chart has few colours: with a table of them the file is a fraction of the size."""
    from PIL import Image

    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(128)
    few.save(path, optimize=True)


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --band: #f5f6f8; --edge: #d0d4da; --link: #0b5cad }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #14171a; --band: #1d2126; --edge: #3a4048; --link: #7db8f5 }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 1200px; padding: 0 1rem; color: var(--ink);
  background: var(--paper) }
h1, h2 { font-size: 1.6rem; overflow-wrap: anywhere } h2 { font-size: 1rem; margin: 1rem 0 .3rem }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .6rem; text-align: left; white-space: nowrap }
th { position: sticky; top: 0; background: var(--band) } tr:nth-child(even) td { background: var(--band) }
.scroll { overflow: auto; max-height: 75vh; border: 1px solid var(--edge); margin: 1rem 0 }
.scroll:focus-visible { outline: 2px solid var(--link) } .chart { width: 100% } p { margin: .4rem 0 }
"""
#: Charts on a page: the words of axes in the dark, where those of marks are `INK`; what a point tells on a phone.
CHARTS = """
@media (prefers-color-scheme: dark) {
  .chart :is(.role-axis-label, .role-axis-title, .role-legend-label, .role-title-text) text { fill: #c3c9d1 }
  .chart text[fill="#767676"] { fill: #a3abb5 }
}
@media (max-width: 500px) {
  /* Beside the finger it would reach beyond the screen. */
  #vg-tooltip-element { inset: auto 8px 8px !important }
  #vg-tooltip-element td.value { max-width: none; white-space: normal; overflow-wrap: anywhere }
}
"""
INK = "#767676"  # of words and lines in a picture: legible on white and on dark


def config() -> dict[str, Any]:
    """The look of every picture on a page: no background, so that the page's own shows."""
    text = {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelColor": "#444",
        "titleColor": "#444",
    }
    return {
        "background": None,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "title": {"fontSize": 13, "color": "#222"},
        "axis": {**text, "gridColor": INK, "gridOpacity": 0.22, "domainColor": INK, "tickColor": INK},
        "legend": {**text, "orient": "bottom", "columns": 2, "labelLimit": 250, "symbolStrokeWidth": 2},
        "point": {"filled": True, "size": 55, "cursor": "pointer", "opacity": 1},
        "rect": {"cursor": "pointer"},
        "text": {"color": INK, "fontSize": 11},
        "rule": {"color": INK},
        "line": {"strokeWidth": 2},
    }


def libraries() -> str:
    """The plotting libraries themselves, as the text of a script; kept for the next call, as it takes seconds."""
    version = importlib.metadata.version("vl-convert-python")
    kept = cache_folder("drawing") / f"vl-convert-{version}.js"
    with contextlib.suppress(OSError):
        return kept.read_bytes().decode()
    import vl_convert

    text = str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub asks for a snippet
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            file.write(text.encode())
        os.replace(file.name, kept)
    return text


def _embed(chart: Any, number: int) -> str:
    """A chart as HTML that the bundle's scripts draw, its title as a heading; `number` tells it from others."""
    look = config()
    look["legend"]["labelLimit"] = {"expr": "width - 20"}  # a phone's too: the rest of a name is cut
    drawn = specification(chart) | {"config": look}
    title = drawn.pop("title", "")
    text = json.dumps(drawn, separators=(",", ":")).replace("<", "\\u003c")
    place = f'<h2>{escape(title)}</h2><div class=chart id="chart{number}" role=img aria-label="{escape(title)}"></div>'
    return f'{place}<script>vegaEmbed("#chart{number}", {text}, {_OPTIONS})</script>'


#: As SVG, whose words the style colours anew in the dark.
_OPTIONS = (
    '{actions: false, renderer: "svg", '
    'tooltip: {theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"}}'
)


def page(charts: Sequence[object], path: Path, title: str, table: str, notes: Sequence[str] = ()) -> None:
    """Writes notes, charts as wide as the screen, and a CSV's text as one HTML page, which opens off line."""
    head, *lines = csv.reader(io.StringIO(table))
    names = "".join(f"<th scope=col>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    drawn = "".join(_embed(chart, number) for number, chart in enumerate(charts))
    parts = (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">',
        f"<title>{escape(title)}</title><style>{_STYLE}{CHARTS}{_right(head, lines)}</style>",
        f"<script>{libraries()}</script><h1>{escape(title)}</h1>{told}{drawn}",
        f"<div class=scroll tabindex=0 role=region aria-label=Rows><table><thead><tr>{names}</tr></thead>"
        f"<tbody>{body}</tbody></table></div></html>",
    )
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _right(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A style that puts columns of numbers to the right."""
    numbers = [n for n, _ in enumerate(head, 1) if all(re.fullmatch(r"[-+.\de]*", line[n - 1]) for line in lines)]
    return f":is({', '.join(f'td:nth-child({n}), th:nth-child({n})' for n in numbers)}) {{ text-align: right }}"


__all__ = ["CHARTS", "INK", "INSTALL", "config", "libraries", "page", "plotting_missing", "save", "save_specification",
           "specification"]  # fmt: skip
