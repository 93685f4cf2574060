"""Pipe use, where warps wait, and floor share of every kernel in an audit, as a picture: `make audit-picture`."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vitbench.audit.records import STALLS, Row, read_csv
from vitbench.errors import InputError
from vitbench.report.curves import INSTALL, plotting_missing, save

PIPES = ("issue", "sfu", "matrix", "lsu", "fp32", "alu", "l2", "bytes")
_TITLES = {"sfu": "special", "lsu": "load/store", "alu": "integer", "bytes": "memory", "l2": "L2"}


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each kernel and pass: the median over its cases of each pipe's share of the modelled time, of each share of
    its warps' cycles where the audit has them, and of the floor's share.

    Passes that differ only in a trailing number (chunks of one pass) count as one.
    """
    groups: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.status == "ok" and row.modelled_us:
            groups[row.kernel, re.sub(r"_\d+$", "", row.pass_)].append(row)
    return [
        {
            "name": f"{kernel} {pass_name}",
            "launches": len(found),
            "floor share": median(row.floor_share for row in found),
            **{pipe: median(getattr(row, f"{pipe}_us") / row.modelled_us for row in found) for pipe in PIPES},
            **{name: median(shares) for name in STALLS if (shares := _known(found, name))},
        }
        for (kernel, pass_name), found in sorted(groups.items())
    ]


def _known(rows: Sequence[Row], name: str) -> list[float]:
    return [share for row in rows if (share := getattr(row.stalls, name)) is not None]


def chart(rows: Sequence[Row]) -> Any:
    """Left, how much of the modelled time each pipe is busy; then where its warps' cycles go, where the audit says it;
    right, how close to the floor the kernel comes.

    Raises: InputError when no row has a modelled time, or the plotting packages are missing.
    """
    records = summary(rows)
    if not records:
        raise InputError("the audit has no modelled launch to draw")
    if plotting_missing():
        raise InputError(f"pictures need altair and vl-convert: {INSTALL}")
    import altair as alt
    import pandas as pd

    wide = pd.DataFrame(records)
    wide["label"] = [f"{name}  ({count})" for name, count in zip(wide["name"], wide["launches"], strict=True)]
    order = wide["label"].tolist()
    height = alt.Step(19)

    def shares(names: Sequence[str], title: str, scheme: Any, angle: int, labelled: bool) -> Any:
        long = wide.melt(["label"], list(names), "what", "share")
        long["what"] = long["what"].map(lambda name: _TITLES.get(name, name.removeprefix("stall_").replace("_", " ")))
        axis = alt.Axis(labelLimit=320, ticks=False) if labelled else None
        cells = alt.Chart(long, title=title, width=alt.Step(58 if labelled else 40), height=height).encode(
            x=alt.X("what:N", sort=None, title=None, axis=alt.Axis(orient="top", labelAngle=angle, ticks=False)),
            y=alt.Y("label:N", sort=order, title=None, axis=axis),
        )
        colour = alt.Color("share:Q", scale=alt.Scale(scheme=scheme, domain=[0, 1]), legend=None)
        text = alt.condition("datum.share > 0.6", alt.value("white"), alt.value("#333"))
        numbers = cells.mark_text(fontSize=11).encode(text=alt.Text("share:Q", format=".0%"), color=text)
        return cells.mark_rect().encode(color=colour) + numbers

    parts = [shares(PIPES, "busy share of the modelled time", "blues", 0, True)]
    if stalls := [name for name in STALLS if name in wide]:
        parts.append(shares(stalls, "where cycles of warps go", "oranges", -45, False))
    bars = alt.Chart(wide, title="floor / modelled time", width=220, height=height).encode(
        x=alt.X("floor share:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", orient="top"), title=None),
        y=alt.Y("label:N", sort=order, axis=None),
    )
    values = bars.mark_text(align="left", dx=3, fontSize=11).encode(text=alt.Text("floor share:Q", format=".0%"))
    parts.append(bars.mark_bar(color="#e07b39") + values)
    first = rows[0]
    title = f"{first.arch}, triton {first.triton}: median over the launches of each kernel (their number in brackets)"
    return alt.hconcat(*parts, spacing=12).resolve_scale(color="independent").properties(title=title)


def main(folder: Path) -> int:
    """Draws every audit CSV of a folder beside it.

    Raises: InputError when there is none.
    """
    files = sorted(folder.glob("audit-*.csv"))
    if not files:
        raise InputError(f"no audit-*.csv in {folder}; `make audit-accept` writes them")
    for path in files:
        for written in save(chart(read_csv(path)), path.with_suffix("")):
            print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except InputError as problem:
        sys.exit(f"vitbench: {problem}")
