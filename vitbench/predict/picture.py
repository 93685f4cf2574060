"""Published top-1 against predicted images a second, a panel a card: what another model beats in both is faded."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vitbench.drawing import INK
from vitbench.predict import calibration
from vitbench.predict.plan import Row, best

if TYPE_CHECKING:
    import pandas as pd

_HEIGHT = 480
#: Pixels from a name to the next, upward.
_NAME = 13
#: Pixels of a panel from which on names end within it.
_WIDE = 500
#: What a pointer is told, which with the names is all that a panel holds; and what tells panels apart.
_TOLD = ["model:N", "resolution:N", "img_per_s:Q", "low:Q", "high:Q", "top1:Q", "top1_source:N", "memory_gib:Q"]
_PANEL = ("gpu", "impl", "batch", "layout")
#: Characters of a line above the panels.
_WIDTH = 130


def chart(rows: Sequence[Row]) -> Any:
    """The panels with what they rest on above them; None where no row has a top-1."""
    import altair as alt

    drawn = panels(rows, 760)
    title = alt.TitleParams(
        "Top-1 against predicted throughput", subtitle=_subtitle(dict.fromkeys(row.impl for row in rows))
    )
    return alt.vconcat(*drawn).properties(title=title) if drawn else None


def panels(rows: Sequence[Row], width: int | str) -> list[Any]:
    """One a card, so wide in pixels, or "container"; none where no row has a top-1."""
    import altair as alt
    import pandas as pd

    known = [row for row in rows if row.top1 is not None and row.img_per_s is not None]
    if not known:
        return []
    alt.data_transformers.disable_max_rows()
    front = set(best(known))
    shown = [name.partition(":")[0] for name in _TOLD]
    frame = pd.DataFrame({name: [getattr(row, name) for row in known] for name in (*shown, *_PANEL)})
    frame = frame.assign(best=[row in front for row in known], name=list(map(_name, known)))
    y = alt.Y("top1:Q", scale=alt.Scale(zero=False), title="ImageNet top-1, published (%)")
    drawn = []
    for (gpu, impl), data in frame.groupby(["gpu", "impl"], sort=False):
        batch, layout = data["batch"].iloc[0], data["layout"].iloc[0]
        card = gpu if impl == "eager" else f"{gpu}, compiled"
        x = alt.X("img_per_s:Q", scale=_scale(data["img_per_s"]), title="images/s, predicted")
        others = alt.Chart(data.loc[~data["best"], shown]).mark_circle(size=16, opacity=0.3, color=INK)
        leading = data[data["best"]].sort_values("img_per_s")
        named = leading[leading["model"].isin(_with_room(leading, data["top1"].max() - data["top1"].min()))]
        line = alt.Chart(leading[shown]).mark_line(color="#d62728", interpolate="step-after", strokeWidth=1)
        points = alt.Chart(leading[shown]).mark_circle(size=36, color="#d62728", opacity=1)
        names = alt.Chart(named[["img_per_s", "top1", "name"]]).mark_text(align="left", dx=5, dy=-7, fontSize=9)
        if width == "container":
            names = names.transform_calculate(name=f"width > {_WIDE} ? datum.name : ''")
        drawn.append(
            alt.layer(
                others.encode(x=x, y=y, tooltip=_TOLD),
                line.encode(x=x, y=y),
                points.encode(x=x, y=y, tooltip=_TOLD),
                names.encode(x=x, y=y, text="name:N"),
            ).properties(title=f"{card}, batch {batch}, {layout}", width=width, height=_HEIGHT)
        )
    return drawn


def _scale(values: pd.Series[float]) -> Any:
    """From the slowest model to the fastest, with room for its name."""
    import altair as alt

    low, high = values.min(), values.max()
    spread = max(high / low, 2.0)
    return alt.Scale(type="log", nice=False, domain=[low / spread**0.04, high * spread**0.13])


def _with_room(leading: pd.DataFrame, span: float) -> list[str]:
    """The models of a front whose names do not lie on each other, the most accurate first."""
    kept: list[str] = []
    last = float("inf")
    ordered = leading.sort_values("top1", ascending=False)
    for model, top1 in zip(ordered["model"], ordered["top1"], strict=True):
        if last - top1 >= span * _NAME / _HEIGHT:
            kept.append(model)
            last = top1
    return kept


def _subtitle(impls: Iterable[str]) -> list[str]:
    return [part for line in calibration.statement(impls).split("\n") for part in textwrap.wrap(line, _WIDTH)]


def _name(row: Row) -> str:
    name = row.model.removeprefix("timm:")
    return name if name.endswith(f"_{row.resolution}") else f"{name} {row.resolution}"


__all__ = ["chart", "panels"]
