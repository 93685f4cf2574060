"""Peak memory over batch and resolution: predicted and measured, where curves cross, what fits a card."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from vitbench.memory.curves import Point, crossings
from vitbench.memory.setting import batch_words
from vitbench.report.figures import (
    INK,
    MOST,
    SIDE,
    Curves,
    Figure,
    Section,
    base,
    colour,
    curves,
    modes,
    number,
    several,
    shape,
    short_numbers,
    side,
    steps,
    tips,
    upward,
    word,
)
from vitbench.report.reading import Results

_WHAT = {"sweep": "Lines are predicted, points measured.", "memory": "Predicted."}
_SWEPT = ("model", "impl", "dtype", "layout", "resolution", "device_name")
_ASKED = ("model", "impl", "dtype", "optimizer", "resolution", "gpu")


def section(results: Results) -> Section:
    """Pictures of what `bench`, `memory-curves` and `memory` wrote."""
    figures: list[Figure] = []
    facts: list[str] = []
    swept, asked = results.ok("sweep"), results.frames["memory"]
    swept = swept[swept["predicted_mem_mib"].gt(0) | swept["peak_mem_mib"].gt(0)]
    asked = asked[asked["peak_mib"].gt(0)]
    for kind, frame in (("sweep", swept), ("memory", asked)):
        for mode in modes(frame):
            of_mode = frame[frame["mode"] == mode]
            if of_mode["batch"].nunique() > 1:
                figures.append(_over_batch(kind, of_mode, mode, facts))
            if side(of_mode).nunique() > 1:
                figures.append(_over_resolution(kind, of_mode, mode))
    fits = asked[asked["largest_batch"].gt(0)]
    figures += [_largest(fits[fits["mode"] == mode], mode, facts) for mode in modes(fits)]
    published = results.frames["published memory"]
    published = published[
        (published["reason"] == "") & published["measured_mib"].gt(0) & published["predicted_mib"].gt(0)
    ]
    if len(published):
        figures.append(_published(published, facts))
    missing = (
        [] if figures else ["No row has peak memory, measured or predicted: `vitbench memory-curves` writes some."]
    )
    return Section(name="memory", title="Memory", figures=figures, facts=facts, missing=missing)


def _peak(kind: str, frame: pd.DataFrame) -> pd.Series:
    return frame["peak_mib"] if kind == "memory" else frame["predicted_mem_mib"].fillna(frame["peak_mem_mib"])


def _cards(kind: str, frame: pd.DataFrame) -> str:
    return ", " + ", ".join(frame["gpu"].unique()) if kind == "memory" else ""


def _crossed(by_name: Mapping[str, list[Point]], x: str, y: str, alike: Mapping[str, str]) -> list[dict[str, Any]]:
    """A note at each crossing of the curves that are drawn and of which the same holds, by `alike`."""
    pairs = itertools.combinations(list(by_name.items())[:MOST], 2)
    return [
        {x: at[0], y: at[1], "series": one, "other": other, "told": f"{x} {at[0]:.0f}"}
        for (one, first), (other, second) in pairs
        if alike.get(one) == alike.get(other)
        for at in crossings(first, second)
    ]


def _layers(kind: str, x: Any, lines_y: str, title: str, notes: list[dict[str, Any]], shift: str = "") -> Any:
    import altair as alt

    start = base().transform_calculate(side=SIDE) if shift else base()
    line = start.transform_filter(f"datum.{lines_y} > 0").mark_line()
    layers = [line.encode(x=x, y=upward(lines_y, title), color=colour())]
    dots = "peak_mem_mib" if kind == "sweep" else "peak_mib"
    size = 55 if kind == "sweep" else 22
    point = start.transform_filter(f"datum.{dots} > 0").mark_point(size=size)
    layers.append(
        point.encode(
            x=x, y=upward(dots, title), color=colour(), shape=shape(),
            tooltip=tips("model:N", "batch:Q", "resolution:N", "dtype:N", *sorted({f"{dots}:Q", f"{lines_y}:Q"})),
        )
    )  # fmt: skip
    if notes:
        at = base("notes").encode(x=x, y=upward(lines_y, title))
        layers.append(at.mark_point(size=170, filled=False, color=INK, strokeWidth=1.5))
        layers.append(at.mark_text(align="left", dx=11, dy=5).encode(text="told:N"))
    return alt.layer(*layers)


def _over_batch(kind: str, frame: pd.DataFrame, mode: str, facts: list[str]) -> Figure:
    names = _SWEPT if kind == "sweep" else _ASKED
    found = curves(frame, names, "batch")
    y = "predicted_mem_mib" if kind == "sweep" else "peak_mib"
    points = {name: list(zip(group["batch"], _peak(kind, group), strict=True)) for name, group in found.by_name.items()}
    sizes = {name: str(group["resolution"].iloc[0]) for name, group in found.by_name.items()}
    notes = _crossed(points, "batch", y, sizes)
    facts += _split(points, word(mode))
    facts += [
        f"{note['series']} and {note['other']} cross at batch {note['batch']:.0f}, {number(note[y])} MiB ({word(mode)})"
        for note in notes
    ]
    where = "predicted" if kind == "memory" else "predicted and measured"
    return Figure(
        name=f"memory-{'card-' if kind == 'memory' else ''}over-batch-{mode}",
        title=f"Peak memory over the batch, {word(mode)}{_cards(kind, frame)} ({where})",
        caption=_WHAT[kind] + (" A ring marks where two curves of one size cross." if notes else ""),
        kind=kind,
        chart=_layers(kind, steps("batch", frame["batch"], "batch size"), y, "peak MiB", notes),
        rows=found.rows,
        series=found.series,
        notes=notes,
    )


def _split(points: Mapping[str, list[Point]], mode: str) -> list[str]:
    """Static part and slope of each curve: a straight line through its smallest and its largest batch."""
    told = []
    for name, curve in list(points.items())[:MOST]:
        known = sorted(dict(curve).items())
        if len(known) > 1:
            (x0, y0), (x1, y1) = known[0], known[-1]
            each = (y1 - y0) / (x1 - x0)
            told.append(f"{name}, {mode}: {number(y0 - each * x0)} MiB static and {number(each)} MiB for each image")
    return told


def _over_resolution(kind: str, frame: pd.DataFrame, mode: str) -> Figure:
    """At the batch that most sizes were tried with."""
    sizes = side(frame)
    batch = frame.assign(side=sizes).groupby("batch")["side"].nunique().idxmax()
    shown = several(frame[frame["batch"] == batch].assign(side=sizes), "side")
    names = [name for name in (_SWEPT if kind == "sweep" else _ASKED) if name != "resolution"]
    found = curves(shown, names, "side")
    y = "predicted_mem_mib" if kind == "sweep" else "peak_mib"
    return Figure(
        name=f"memory-{'card-' if kind == 'memory' else ''}over-resolution-{mode}",
        title=f"Peak memory over the resolution, {word(mode)}, batch {batch:.0f}{_cards(kind, frame)}",
        caption=_WHAT[kind],
        kind=kind,
        chart=_layers(kind, steps("side", sizes, "resolution, px"), y, "peak MiB", [], "side"),
        rows=found.rows,
        series=found.series,
    )


def _largest(frame: pd.DataFrame, mode: str, facts: list[str]) -> Figure:
    import altair as alt

    shown = frame.assign(side=side(frame)).drop_duplicates([*_ASKED, "file"])
    found: Curves = curves(shown, [name for name in _ASKED if name != "resolution"], "side")
    points = {
        name: list(zip(group["side"], group["largest_batch"], strict=True)) for name, group in found.by_name.items()
    }
    notes = _crossed(points, "side", "largest_batch", {})
    facts += [
        f"{name}, {word(mode)}: the largest batch is "
        + ", ".join(f"{batch_words(int(largest))} at {size:.0f} px" for size, largest in curve)
        for name, curve in list(points.items())[:MOST]
    ]
    for note in notes:
        note["told"] = f"{note['side']:.0f} px"
    x, y = steps("side", shown["side"], "resolution, px"), upward("largest_batch", "largest batch")
    rows = base().transform_calculate(side=SIDE)
    dots = rows.mark_point().encode(
        x=x,
        y=y,
        color=colour(),
        shape=shape(),
        tooltip=tips("model:N", "gpu:N", "resolution:N", "dtype:N", "largest_batch:Q"),
    )
    layers = [rows.mark_line().encode(x=x, y=y, color=colour()), dots]
    if notes:
        at = base("notes").encode(x=x, y=y)
        layers += [
            at.mark_point(size=170, filled=False, color=INK, strokeWidth=1.5),
            at.mark_text(align="left", dx=11, dy=-5).encode(text="told:N"),
        ]
    return Figure(
        name=f"memory-largest-batch-{mode}",
        title=f"Largest batch that fits, {word(mode)}, {', '.join(frame['gpu'].unique())}",
        caption=_WHAT["memory"] + (" A ring marks where two curves cross." if notes else ""),
        kind="memory",
        chart=alt.layer(*layers),
        rows=found.rows,
        series=found.series,
        notes=notes,
    )


def _published(frame: pd.DataFrame, facts: list[str]) -> Figure:
    import altair as alt

    ratio = frame["predicted_mib"] / frame["measured_mib"]
    facts.append(
        f"{len(frame)} published figures of peak memory: predicted / measured has the median {ratio.median():.3f}"
    )
    ends = [
        {"measured_mib": end, "predicted_mib": end}
        for end in (frame["measured_mib"].min(), frame["measured_mib"].max())
    ]
    x = alt.X("measured_mib:Q", scale=alt.Scale(type="log", nice=False, padding=12), title="measured MiB, as published",
              axis=short_numbers(tickCount=6))  # fmt: skip
    y = upward("predicted_mib", "predicted MiB")
    dots = base().mark_point().encode(
        x=x, y=y, color=colour(), shape=shape(),
        tooltip=tips("model:N", "image:Q", "batch:Q", "mode:N", "precision:N", "measured_mib:Q", "predicted_mib:Q",
                 "source:N"),
    )  # fmt: skip
    line = base("notes").mark_line(color=INK, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y)
    return Figure(
        name="memory-published",
        title="Predicted peak memory beside published figures",
        caption="On the dashed line prediction and publication are equal.",
        kind="published memory",
        chart=alt.layer(line, dots),
        rows=list(frame.index),
        series=list(frame["precision"]),
        notes=ends,
    )


__all__ = ["section"]
