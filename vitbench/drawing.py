"""Whether pictures can be drawn here, and how charts become files and pages."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

INSTALL = "pip install altair vl-convert-python"


def plotting_missing() -> bool:
    """Whether the plotting packages are not installed; a measuring machine may lack them."""
    return any(importlib.util.find_spec(name) is None for name in ("altair", "vl_convert"))


def save(chart: Any, stem: Path) -> list[Path]:
    """Writes a chart as stem.png and stem.svg, without a browser."""
    files = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    for path in files:
        chart.save(str(path), **({"ppi": 144} if path.suffix == ".png" else {}))
        if path.suffix == ".png":
            _shrink(path)
    return files


def save_specification(specification: dict[str, Any], stem: Path) -> None:
    """Writes a Vega-Lite specification with its data as stem.png and stem.svg."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(specification)
    stem.with_name(stem.name + ".svg").write_text(svg, encoding="utf-8")
    path = stem.with_name(stem.name + ".png")
    path.write_bytes(vl_convert.svg_to_png(svg, ppi=144))
    _shrink(path)


def _shrink(path: Path) -> None:
    """A chart has few colours: with a table of them the file is a fraction of the size."""
    from PIL import Image

    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(128)
    few.save(path, optimize=True)


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --band: #f5f6f8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #14171a; --band: #1d2126 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 1200px; padding: 0 1rem; color: var(--ink);
  background: var(--paper) } h1 { font-size: 1.6rem; overflow-wrap: anywhere }
table { border-collapse: collapse; font-size: 13px }
td, th { padding: .15rem .6rem; text-align: right; white-space: nowrap } td:last-child { text-align: left }
th { border-bottom: 1px solid #999; position: sticky; top: 0; background: var(--paper) }
td:first-child, th:first-child { text-align: left }
.scroll { overflow-x: auto } tr:nth-child(even) td { background: var(--band) }
.vega-embed { background: #fff; border-radius: 6px; color-scheme: light; width: 100%; margin: .5rem 0 }
p { margin: .4rem 0 }
"""


def libraries() -> str:
    """The plotting libraries themselves, as the text of a script."""
    import vl_convert

    return str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub asks for a snippet


def embed(chart: object, number: int) -> str:
    """A chart as HTML that the bundle's scripts draw; `number` tells it from others of the page."""
    import altair as alt

    assert isinstance(chart, alt.TopLevelMixin)
    specification = chart.to_json(indent=None).replace("</", "<\\/")
    place = f'<div class=scroll><div id="chart{number}"></div></div>'
    return f'{place}<script>vegaEmbed("#chart{number}", {specification}, {{actions: false}})</script>'


def page(charts: Sequence[object], path: Path, title: str, table: str, notes: Sequence[str] = ()) -> None:
    """Writes notes, charts and a CSV's text as one HTML page, which needs nothing else and opens off line."""
    head, *lines = csv.reader(io.StringIO(table))
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    drawn = "".join(embed(chart, number) for number, chart in enumerate(charts))
    parts = (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style><script>{libraries()}</script><h1>{escape(title)}</h1>{told}{drawn}",
        f"<div class=scroll><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div></html>",
    )
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


__all__ = ["INSTALL", "embed", "libraries", "page", "plotting_missing", "save", "save_specification"]
