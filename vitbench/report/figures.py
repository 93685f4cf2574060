"""What a picture of the report is: rows of one kind and an Altair chart over their columns, so that the page can draw
it from its table again when rows are filtered away. Names, colours and the few words that all pictures share.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vitbench.drawing import INK, config
from vitbench.names import file_name

#: Seven colours that people of every colour vision tell apart, on white and on dark (Okabe and Ito, without their black
#: and their yellow, and a grey), and a shape beside each.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#888888")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
#: As many curves as a picture holds.
MOST = len(COLOURS)
WIDTH, HEIGHT = 520, 320


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture.

    Attributes:
        name: of its files.
        kind: of its rows, as in `kinds.KINDS`.
        chart: over the data called `points`, a record a row, and `notes`; its fields are the kind's shown columns, and
            `series`.
        rows: the numbers of its rows.
        series: of each row, the name of its curve, those to be kept first first; empty where there are no curves.
        notes: records of what is marked beside the rows; one with a `series` goes with that curve.
        height: pixels, or None where the chart sets its own.
    """

    name: str
    title: str
    caption: str
    kind: str
    chart: Any
    rows: Sequence[int]
    series: Sequence[str] = ()
    notes: Sequence[dict[str, Any]] = ()
    height: int | None = HEIGHT

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", file_name(self.name))  # there are modes and cards in it, as files name them

    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification, without data and as wide as its place."""
        found: dict[str, Any] = self.chart.to_dict(validate=False)  # Vega finds faults too, in a tenth of the time
        size = {} if self.height is None else {"height": self.height}
        return {**found, "width": "container", **size, "config": config()}

    def drawn(self, frame: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
        """The specification of a picture by itself: with its data, `MOST` curves at most, a title and a size."""
        points = frame.loc[list(self.rows), list(columns)].assign(row=list(self.rows))
        kept = list(dict.fromkeys(self.series))[:MOST]
        if self.series:
            points = points.assign(series=list(self.series))
            points = points[points["series"].isin(kept)]
        records = [{k: v for k, v in record.items() if v == v} for record in points.to_dict("records")]
        notes = [note for note in self.notes if "series" not in note or note["series"] in kept]
        title = {"text": self.title, "anchor": "start"}
        of_all = {
            "width": WIDTH,
            "title": title,
            "datasets": {"points": records, "notes": notes},
            "background": "white",
        }
        found = {**self.spec(), **of_all}
        for layer in found.get("layer", [found]):
            for channel in layer["encoding"].values():
                if isinstance(channel, dict) and channel.get("field") == "series":
                    channel["scale"]["domain"] = kept  # as the page's script does
        return found


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: pictures, figures in words, and what is not there and why."""

    name: str
    title: str
    figures: Sequence[Figure] = ()
    facts: Sequence[str] = ()
    missing: Sequence[str] = ()


@dataclass
class Curves:
    """Rows by the curve they are of, the curve with most points first; `by_name` has those that are drawn."""

    rows: list[int] = field(default_factory=list)
    series: list[str] = field(default_factory=list)
    by_name: dict[str, pd.DataFrame] = field(default_factory=dict)


def curves(frame: pd.DataFrame, names: Sequence[str], x: str) -> Curves:
    """Groups rows into curves over `x`: a curve is named by `label`, and after its file where two files have
    the same point."""
    series = label(frame, names)
    if pd.DataFrame({"series": series, "x": frame[x]}).duplicated().any() and frame["file"].nunique() > 1:
        series = series + " " + frame["file"]
    sizes = series.map(series.value_counts())
    order = pd.DataFrame({"size": -sizes, "first": series.map(_first(series))}).sort_values(["size", "first"]).index
    ordered = frame.loc[order].assign(series=series.loc[order])
    drawn = list(dict.fromkeys(ordered["series"]))[:MOST]
    groups = {name: ordered[ordered["series"] == name].sort_values(x) for name in drawn}
    return Curves(list(ordered.index), list(ordered["series"]), groups)


def _first(series: pd.Series) -> dict[Hashable, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(series))}


def label(frame: pd.DataFrame, names: Sequence[str]) -> pd.Series:
    """The first column and those of the others that vary, in one text."""
    varying = [names[0], *(name for name in names[1:] if frame[name].nunique() > 1)]
    columns = [frame[name].map("{:g}".format) if frame[name].dtype == float else frame[name] for name in varying]
    text = columns[0]
    for column in columns[1:]:
        text = text + " " + column
    return text


def base(name: str = "points") -> Any:
    """A chart over the rows, or over the notes."""
    import altair as alt

    return alt.Chart(alt.NamedData(name=name))


def colour() -> Any:
    """A curve by its colour. One legend tells colours and shapes, since both get the same names when drawn."""
    import altair as alt

    return alt.Color("series:N", sort=None, title=None, scale=alt.Scale(range=list(COLOURS)))


def shape() -> Any:
    """A curve by its shape."""
    import altair as alt

    return alt.Shape("series:N", sort=None, title=None, scale=alt.Scale(range=list(SHAPES)))


def tips(*names: str) -> list[Any]:
    """What a pointer is told, by columns; those that end in :Q are numbers."""
    import altair as alt

    kinds: dict[str, Any] = {"Q": "quantitative", "N": "nominal"}
    parts = [name.partition(":") for name in names]
    # Of what is called `image` a tooltip shows the picture that lies there.
    return [
        alt.Tooltip(field=name, type=kinds[kind], format=",.5~r" if kind == "Q" else alt.Undefined,
                    title="pixels" if name == "image" else name)
        for name, _, kind in parts
    ]  # fmt: skip


def steps(field_name: str, values: pd.Series, title: str) -> Any:
    """A logarithmic axis across, with ticks at values that were run."""
    import altair as alt

    known = sorted({float(value) for value in values.dropna()})
    thin = known[:: -(-len(known) // 9)]
    axis = alt.Axis(values=thin, format="~d", labelOverlap=True)
    return alt.X(f"{field_name}:Q", scale=alt.Scale(type="log", nice=False, padding=12), axis=axis, title=title)


def upward(field_name: str, title: str, log: bool = True) -> Any:
    """An axis upward that fits the data."""
    import altair as alt

    scale = alt.Scale(type="log", nice=False, padding=10) if log else alt.Scale(zero=True)
    return alt.Y(f"{field_name}:Q", scale=scale, title=title, axis=short_numbers(tickCount=6, labelOverlap=True))


def short_numbers(**how: Any) -> Any:
    """An axis of numbers such as 10k and 0.6, of which SI's prefixes would make 600m; `how` is that of `alt.Axis`.

    Of a logarithmic axis Vega leaves some ticks without a label, so that decades stand out; they stay without."""
    import altair as alt

    plain = "datum.label && abs(datum.value) < 1 ? format(datum.value, '~g') : datum.label"
    return alt.Axis(format="~s", labelExpr=plain, **how)


SIDE = "toNumber(split(datum.resolution, 'x')[0])"


def side(frame: pd.DataFrame) -> pd.Series:
    """The first side of resolutions, in pixels."""
    return pd.to_numeric(frame["resolution"].str.split("x").str[0], errors="coerce")


def several(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """The rows of models that have more than one value of `x`: one point is no curve."""
    return frame[frame.groupby("model")[x].transform("nunique") > 1]


def word(mode: str) -> str:
    return {"train": "training", "infer": "inference"}.get(mode, mode or "unknown mode")


def modes(frame: pd.DataFrame) -> list[str]:
    return sorted(frame["mode"].unique())


def number(value: float) -> str:
    """Three digits or more, as people write them."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


__all__ = [
    "COLOURS", "HEIGHT", "INK", "MOST", "SHAPES", "SIDE", "Curves", "Figure", "Section", "base", "colour",
    "curves", "label", "modes", "number", "several", "shape", "side", "steps", "tips", "upward", "word",
]  # fmt: skip
