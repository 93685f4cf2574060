"""The profile of launches as a page: the same as `show`, to be read in a browser. It needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from vitbench.audit.run import Audited
from vitbench.audit.show import advice, hot, summary
from vitbench.audit.timeline import Timeline, timeline

_STYLE = Path(__file__).with_name("page.css")
_LABEL, _WIDTH, _ROW = 130, 1000, 24


def html(items: Sequence[Audited]) -> str:
    """One page of all launches, the text of names and machine code escaped."""
    links = "".join(f'<a href="#l{n}">{escape(item.row.key)}</a>' for n, item in enumerate(items))
    sections = "".join(_section(n, item) for n, item in enumerate(items))
    style = _STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>vitbench audit: {escape(items[0].row.key)}</title><style>{style}</style>"
        f"<h1>Where {len(items)} launch{'es spend' if len(items) > 1 else ' spends'} the time, as modelled</h1>"
        f"<nav>{links}</nav>{sections}</html>\n"
    )


def _section(number: int, item: Audited) -> str:
    title = f'<section id="l{number}"><h2>{escape(item.row.key)}</h2><pre>{escape(chr(10).join(summary(item)))}</pre>'
    counted, simulated = item.profile, item.simulated
    if counted is None or simulated is None:
        return title + "</section>"
    tried = "".join(f"<li>{escape(hint)}</li>" for hint in advice(item)) or "<li>nothing stands out</li>"
    found = timeline(item, 100)
    return (
        f"{title}<h3>What to try</h3><ul>{tried}</ul>"
        f"<h3>Where warps spend their cycles</h3>{_shares(simulated.shares)}"
        f'<p class="soft">{simulated.issued_per_cycle:.2f} instructions a cycle; of each scheduler\'s warps '
        f"{simulated.eligible_per_cycle:.2f} are eligible in a cycle.</p>"
        f"{_picture(found) if found else ''}{_listing(item)}</section>"
    )


def _shares(shares: dict[str, float]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class=number>{share:.1%}</td><td>{_bar(share, name != 'selected')}</td></tr>"
        for name, share in shares.items()
        if share >= 0.0005
    )
    return f'<table class="shares"><tbody>{rows}</tbody></table>'


def _bar(share: float, stall: bool) -> str:
    return f'<span class="bar{" stall" if stall else ""}" style="width:calc({share:.3f} * var(--full))"></span>'


def _picture(found: Timeline) -> str:
    """A row a lane, the busier the darker."""
    parts = []
    for row, (lane, busy) in enumerate(found.columns.items()):
        y, width = _ROW * row, _WIDTH / len(busy)
        unit = " cycles" if lane == "waiting" else ""
        parts.append(f'<text x="0" y="{y + 15}">{lane}</text>')
        parts.append(f'<text x="{_LABEL + _WIDTH + 8}" y="{y + 15}">{found.counts[lane]:,}{unit}</text>')
        parts += [
            f'<rect{" class=stall" if lane == "waiting" else ""} x="{_LABEL + column * width:.1f}" y="{y + 3}" '
            f'width="{width:.1f}" height="{_ROW - 6}" opacity="{share:.2f}"/>'
            for column, share in enumerate(busy)
            if share > 0
        ]
        parts.append(f'<line x1="{_LABEL}" x2="{_LABEL + _WIDTH}" y1="{y + _ROW}" y2="{y + _ROW}"/>')
    height = _ROW * len(found.columns) + 2
    title = f"Timeline of the first program's first warp, {found.cycles:,.0f} cycles"
    return (
        f'<h3>{title}</h3><div class="drawn"><svg role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {_LABEL + _WIDTH + 120} {height}">{"".join(parts)}</svg></div>'
    )


def _listing(item: Audited) -> str:
    title, lines = hot(item)
    rows = "".join(
        f"<tr><td>{line.address:#06x}</td><td>{line.pipe}</td><td class=number>{line.cycles:.0f}</td>"
        f"<td class=number>{line.runs:.2f}</td><td class=number>{line.share:.1%}</td>"
        f"<td>{_bar(line.share, line.reason != 'selected')} {escape(line.reason)}</td><td>{escape(line.text)}</td></tr>"
        for line in lines
    )
    heads = ("address", "pipe", "cycles", "runs per warp", "warp cycles before it", "mostly", "instruction")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<h3>{escape(title)}</h3><div class="scroll" tabindex="0"><table class="code"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
