"""Curves of predictions: peak memory over the batch, the largest batch over the resolution, and where models cross."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitbench import cards
from vitbench.drawing import INK
from vitbench.memory.plan import Row
from vitbench.memory.setting import LARGEST_BATCH

Point = tuple[float, float]
#: What tells two curves of a panel apart.
_NAMES = ("model", "dtype", "impl", "optimizer")
#: Crossings with words beside their rings; of more, which would lie on each other, a pointer is told.
_WORDS = 2


def crossings(one: Sequence[Point], other: Sequence[Point]) -> list[Point]:
    """Where two curves cross: (x, y), both drawn with straight lines between points of equal x on logarithmic axes."""
    second = dict(other)
    shared = [(x, y, second[x]) for x, y in sorted(dict(one).items()) if x in second and y > 0 and second[x] > 0]
    found = []
    for (x0, a0, b0), (x1, a1, b1) in itertools.pairwise(shared):
        before, after = math.log(a0 / b0), math.log(a1 / b1)
        if before * after < 0:
            share = before / (before - after)
            found.append((x0 * (x1 / x0) ** share, a0 * (a1 / a0) ** share))
        elif before == 0 and (after != 0):
            found.append((x0, a0))
    return found


def slope(points: Iterable[Point]) -> float | None:
    """Of y over x between the two largest x: the MiB of an image, where y is a peak and x a batch."""
    known = sorted(dict(points).items())
    if len(known) < 2:
        return None
    (x0, y0), (x1, y1) = known[-2:]
    return (y1 - y0) / (x1 - x0)


def _side(text: str) -> int:
    return int(text.split("x")[0])


def _series(rows: Sequence[Row], by: Sequence[str]) -> dict[str, list[Row]]:
    varying = [name for name in by if len({getattr(row, name) for row in rows}) > 1] or ["model"]
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[" ".join(str(getattr(row, name)) for name in varying)].append(row)
    return dict(groups)


def chart(rows: Sequence[Row], measured: Mapping[Row, float] | None = None) -> Any | None:
    """The panels beside each other, a column a mode, to be saved as a picture; None where there is none."""
    import altair as alt

    columns = [alt.vconcat(*panels).resolve_scale(color="independent") for panels in by_mode(rows, measured).values()]
    if not columns:
        return None
    return alt.hconcat(*columns).resolve_scale(color="independent").configure_legend(labelLimit=420)


def by_mode(
    rows: Sequence[Row], measured: Mapping[Row, float] | None = None, width: int | str = 430
) -> dict[str, list[Any]]:
    """Of each mode the peak over the batch and, with several resolutions, the largest batch over them.

    Args:
        measured: peaks in MiB of some of the rows, drawn as points.
        width: of a panel in pixels, or "container".
    """
    known = [row for row in rows if row.peak_mib is not None]
    found = {}
    for mode in sorted({row.mode for row in known}):
        of_mode = [row for row in known if row.mode == mode]
        panels = []
        if len({row.batch for row in of_mode}) > 1:
            panels.append(_over_batch(of_mode, mode, measured or {}))
        if len({(row.model, row.resolution) for row in of_mode}) > len({row.model for row in of_mode}):
            panels.append(_over_resolution(of_mode, mode))
        if panels:
            found[mode] = [panel.properties(width=width, height=300) for panel in panels]
    return found


def _word(mode: str) -> str:
    return "training" if mode == "train" else "inference"


def _over_batch(rows: Sequence[Row], mode: str, measured: Mapping[Row, float]) -> Any:
    """Each model at its smallest resolution, on the first card."""
    import altair as alt
    import pandas as pd

    gpu = rows[0].gpu
    sizes = {row.model: row.resolution for row in sorted(rows, key=lambda row: -_side(row.resolution))}
    shown = [row for row in rows if row.gpu == gpu and row.resolution == sizes[row.model]]
    curves: dict[str, list[Point]] = {}
    records, points = [], []
    for name, members in _series(shown, _NAMES).items():
        curve = sorted({float(row.batch): row.peak_mib or 0.0 for row in members}.items())
        if (each := slope(curve)) is not None:
            name += f": {each:,.1f} MiB an image"
        curves[name] = curve
        records += [{"batch": x, "MiB": y, "series": name} for x, y in curve]
        points += [{"batch": row.batch, "MiB": measured[row], "series": name} for row in members if row in measured]
    data = pd.DataFrame(records)
    ticks = alt.Axis(values=sorted(data["batch"].unique().tolist()), format="d")
    x = alt.X("batch:Q", scale=alt.Scale(type="log", base=2), axis=ticks, title="batch size")
    y = alt.Y("MiB:Q", scale=alt.Scale(type="log"), title="peak MiB")
    said = [alt.Tooltip("series:N", title="model"), "batch:Q", alt.Tooltip("MiB:Q", format=",.1f")]
    shown_as = {"x": x, "y": y, "color": _color(), "tooltip": said}
    layers = [alt.Chart(data).mark_line(point=not points).encode(**shown_as)]
    if points:
        layers.append(alt.Chart(pd.DataFrame(points)).mark_point(filled=True, size=60).encode(**shown_as))
    layers += _marks(curves, "batch", "MiB", lambda at: f"batch {at[0]:.0f}, {at[1]:,.0f} MiB")
    layers += _capacity(gpu, data)
    alike = set(sizes.values())
    at = f"{alike.pop()} px" if len(alike) == 1 else "each model's smallest size"
    title = f"Peak memory, {_word(mode)}, {at}, {gpu} (predicted)"
    return alt.layer(*layers).properties(title=title)


def _color() -> Any:
    """One colour for a model in every panel, as they come in the same order."""
    import altair as alt

    legend = alt.Legend(orient="bottom", direction="vertical", columns=1)
    return alt.Color("series:N", sort=None, title=None, legend=legend)


def _capacity(gpu: str, data: Any) -> list[Any]:
    """A line where the card ends, if it is in reach."""
    import altair as alt
    import pandas as pd

    usable = next((1024 * card.usable_gib for card in cards.CARDS if card.name == gpu), None)
    if usable is None or data["MiB"].max() < usable / 3:
        return []
    frame = pd.DataFrame([{"MiB": usable, "batch": data["batch"].min(), "what": f"{gpu}: {usable / 1024:.2f} GiB"}])
    rule = alt.Chart(frame).mark_rule(strokeDash=[5, 3], color=INK).encode(y="MiB:Q")
    text = (
        alt.Chart(frame).mark_text(align="left", dx=4, dy=-6, color=INK).encode(x="batch:Q", y="MiB:Q", text="what:N")
    )
    return [rule, text]


def _over_resolution(rows: Sequence[Row], mode: str) -> Any:
    import altair as alt
    import pandas as pd

    curves: dict[str, list[Point]] = {}
    records = []
    for name, members in _series(rows, (*_NAMES, "gpu")).items():
        largest = {
            _side(row.resolution): row.largest_batch
            for row in members
            if row.largest_batch and row.largest_batch < LARGEST_BATCH
        }
        curves[name] = [(float(x), float(y)) for x, y in sorted(largest.items())]
        records += [{"px": x, "largest": y, "series": name} for x, y in curves[name]]
    data = pd.DataFrame(records, columns=["px", "largest", "series"])
    ticks = alt.Axis(values=sorted(data["px"].unique().tolist()), format="d")
    x = alt.X("px:Q", scale=alt.Scale(type="log", nice=False), axis=ticks, title="resolution")
    y = alt.Y("largest:Q", scale=alt.Scale(type="log"), title="largest batch")
    said = [alt.Tooltip("series:N", title="model"), "px:Q", alt.Tooltip("largest:Q", title="largest batch")]
    layers = [alt.Chart(data).mark_line(point=True).encode(x=x, y=y, color=_color(), tooltip=said)]
    layers += _marks(curves, "px", "largest", lambda at: f"{at[0]:.0f} px, batch {at[1]:,.0f}")
    gpus = ", ".join(dict.fromkeys(row.gpu for row in rows))
    title = f"Largest batch, {_word(mode)}, {gpus} (predicted)"
    return alt.layer(*layers).properties(title=title)


def _marks(curves: Mapping[str, Sequence[Point]], x: str, y: str, told: Any) -> list[Any]:
    """A ring at each crossing and, where they are few, words on that side of it which has more room."""
    import altair as alt
    import pandas as pd

    points = [point for one, other in itertools.combinations(curves.values(), 2) for point in crossings(one, other)]
    if not points:
        return []
    across = [at[0] for curve in curves.values() for at in curve]
    middle = math.sqrt(min(across) * max(across))
    frame = pd.DataFrame([{x: at[0], y: at[1], "told": told(at), "right": at[0] > middle} for at in points])
    base = alt.Chart(frame).encode(x=f"{x}:Q", y=f"{y}:Q")
    ring = base.mark_point(size=170, color=INK, strokeWidth=1.5, filled=False).encode(tooltip="told:N")
    if len(points) > _WORDS:
        return [ring]
    return [
        ring,
        *(
            alt.Chart(of_side)
            .mark_text(align="right" if right else "left", dx=-12 if right else 12, dy=-8, color=INK)
            .encode(x=f"{x}:Q", y=f"{y}:Q", text="told:N")
            for right, of_side in frame.groupby("right")
        ),
    ]


__all__ = ["by_mode", "chart", "crossings", "slope"]
