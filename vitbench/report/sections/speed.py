"""Throughput and latency over batch and resolution, implementations against eager, and how both scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from vitbench.report.figures import (
    COLOURS,
    INK,
    MOST,
    SIDE,
    Figure,
    Section,
    base,
    colour,
    curves,
    label,
    modes,
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

_NAMES = ("model", "impl", "dtype", "layout", "resolution", "device_name")
_TIPS = ("model:N", "impl:N", "dtype:N", "resolution:N", "batch:Q", "img_per_s:Q", "latency_ms_p50:Q")
_LOW, _HIGH = "1000 * datum.batch / datum.latency_ms_ci_high", "1000 * datum.batch / datum.latency_ms_ci_low"
#: Published points that are drawn at most: each is a mark of its own.
PUBLISHED = 1500
_INTERVALS = "Whiskers are 95 % intervals of the median."


def section(results: Results) -> Section:
    """Pictures of what `bench` timed."""
    frame = results.ok("sweep")
    timed = frame[frame["img_per_s"].gt(0) & frame["latency_ms_p50"].gt(0)]
    figures: list[Figure] = []
    facts: list[str] = []
    for mode in modes(timed):
        of_mode = timed[timed["mode"] == mode]
        if of_mode["batch"].nunique() > 1:
            found = curves(of_mode, _NAMES, "batch")
            x = steps("batch", of_mode["batch"], "batch size")
            for name, title, y in _QUANTITIES:
                heading = f"{title[0].upper()}{title[1:]} over the batch, {word(mode)}"
                figures.append(_curve(f"{name}-over-batch-{mode}", heading, x, y, title, found))
            facts += _exponents(found.by_name, "batch", "batch", mode)
        elif len(of_mode) > 1:
            figures.append(_ranking(of_mode, mode))
        if side(of_mode).nunique() > 1:
            figures.append(_over_resolution(of_mode, mode, facts))
        compared = of_mode[of_mode["speedup"].gt(0)]
        if len(compared):
            figures.append(_against_eager(compared, mode))
            for impl, ratios in compared.groupby("impl")["speedup"]:
                facts.append(f"{impl} over eager, {word(mode)}: median {ratios.median():.2f}, {ratios.min():.2f} to "
                             f"{ratios.max():.2f} in {len(ratios)} cases")  # fmt: skip
    missing = [] if figures else ["No row is timed: `vitbench bench` writes some."]
    published = results.frames["published throughput"]
    published = published[published["measured_img_per_s"].gt(0) & published["predicted_img_per_s"].gt(0)]
    if len(published):
        figures.append(_published(published, facts))
    if any(figure.kind == "sweep" for figure in figures) and not any(
        figure.name.startswith("speedup") for figure in figures
    ):
        missing.append(
            "No case was timed with eager and another implementation: `vitbench bench --impl eager,compile`."
        )
    return Section(name="speed", title="Throughput and latency", figures=figures, facts=facts, missing=missing)


_QUANTITIES = (("throughput", "images per second", "img_per_s"), ("latency", "milliseconds per step", "latency_ms_p50"))


def _layers(x: Any, y: str, title: str, over_side: bool = False) -> Any:
    import altair as alt

    rows = base().transform_calculate(low=_LOW, high=_HIGH, **({"side": SIDE} if over_side else {}))
    low, high = ("low", "high") if y == "img_per_s" else ("latency_ms_ci_low", "latency_ms_ci_high")
    up = upward(y, title)
    line = rows.mark_line().encode(x=x, y=up, color=colour())
    whole = rows.transform_filter(f"datum.{low} > 0 && datum.{high} > 0")
    whiskers = whole.mark_rule(strokeWidth=1.5).encode(x=x, y=upward(low, title), y2=f"{high}:Q", color=colour())
    dots = rows.mark_point().encode(x=x, y=up, color=colour(), shape=shape(), tooltip=tips(*_TIPS))
    return alt.layer(line, whiskers, dots)


def _curve(name: str, heading: str, x: Any, y: str, title: str, found: Any) -> Figure:
    return Figure(
        name=name, title=heading, caption=_INTERVALS, kind="sweep", chart=_layers(x, y, title), rows=found.rows,
        series=found.series,
    )  # fmt: skip


def _over_resolution(frame: pd.DataFrame, mode: str, facts: list[str]) -> Figure:
    """At the batch that most sizes were tried with."""
    sizes = side(frame)
    batch = frame.assign(side=sizes).groupby("batch")["side"].nunique().idxmax()
    shown = several(frame[frame["batch"] == batch].assign(side=sizes), "side")
    found = curves(shown, [name for name in _NAMES if name != "resolution"], "side")
    facts += _exponents(found.by_name, "side", "resolution", mode)
    return Figure(
        name=f"latency-over-resolution-{mode}",
        title=f"Milliseconds per step over the resolution, {word(mode)}, batch {batch:.0f}",
        caption=_INTERVALS,
        kind="sweep",
        chart=_layers(steps("side", sizes, "resolution, px"), "latency_ms_p50", "milliseconds per step", True),
        rows=found.rows,
        series=found.series,
    )


def _published(frame: pd.DataFrame, facts: list[str]) -> Figure:
    import altair as alt

    ratio = frame["predicted_img_per_s"] / frame["measured_img_per_s"]
    facts.append(f"{len(frame)} published throughputs: predicted / measured has the median {ratio.median():.3f}")
    step = -(-len(frame) // PUBLISHED)
    shown = frame.iloc[::step]
    low, high = frame["measured_img_per_s"].min(), frame["measured_img_per_s"].max()
    x = alt.X("measured_img_per_s:Q", title="measured images per second, as published",
              scale=alt.Scale(type="log", nice=False, padding=12), axis=short_numbers(tickCount=6))  # fmt: skip
    y = upward("predicted_img_per_s", "predicted images per second")
    dots = base().mark_point(size=14, opacity=0.6).encode(
        x=x, y=y, color=colour(), shape=shape(),
        tooltip=tips("model:N", "gpu:N", "resolution:N", "batch:Q", "measured_img_per_s:Q", "predicted_img_per_s:Q"),
    )  # fmt: skip
    line = base("notes").mark_line(color=INK, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y)
    return Figure(
        name="throughput-published",
        title="Predicted throughput beside published",
        caption="On the dashed line they are equal."
        + (f" One of {step} rows is drawn; the table has all." if step > 1 else ""),
        kind="published throughput",
        chart=alt.layer(line, dots),
        rows=list(shown.index),
        series=list(shown["gpu"]),
        notes=[{"measured_img_per_s": end, "predicted_img_per_s": end} for end in (low, high)],
    )


def _exponents(by_name: dict[str, pd.DataFrame], x: str, called: str, mode: str) -> list[str]:
    """The power of x that latency grows with: least squares of the logarithms."""
    told = []
    for name, group in list(by_name.items())[:MOST]:
        if group[x].nunique() > 1:
            power = np.polyfit(np.log(group[x]), np.log(group["latency_ms_p50"]), 1)[0]
            told.append(f"{name}, {word(mode)}: latency grows as {called}^{power:.2f} ({group[x].nunique()} sizes)")
    return told


def _ranking(frame: pd.DataFrame, mode: str) -> Figure:
    """A dot for each row, where all have one batch size and there is no curve to draw."""
    import altair as alt

    best = frame.sort_values("img_per_s", ascending=False).head(30)
    y = alt.Y("series:N", sort="-x", title=None, axis=alt.Axis(labelLimit=220))
    x = alt.X("img_per_s:Q", scale=alt.Scale(type="log", nice=False, padding=12), title="images per second")
    rows = base().transform_calculate(low=_LOW, high=_HIGH)
    dots = rows.mark_point().encode(
        x=x,
        y=y,
        color=alt.Color("impl:N", title=None, scale=_palette(sorted(frame["impl"].unique()))),
        tooltip=tips(*_TIPS),
    )
    return Figure(
        name=f"throughput-ranking-{mode}",
        title=f"Images per second, {word(mode)}, batch {frame['batch'].iloc[0]:.0f}",
        caption="The fastest first, 30 at most.",
        kind="sweep",
        chart=dots.transform_calculate(series=_joined(best)),
        rows=list(best.index),
        height=18 * len(best),
    )


def _against_eager(frame: pd.DataFrame, mode: str) -> Figure:
    import altair as alt

    names = ("model", "dtype", "layout", "resolution", "batch", "device_name")
    cases = frame.assign(case=label(frame, names))
    most = list(dict.fromkeys(cases.sort_values("speedup", ascending=False)["case"]))[:25]
    shown = cases[cases["case"].isin(most)]
    y = alt.Y("case_name:N", sort=alt.EncodingSortField("speedup", op="max", order="descending"), title=None,
              axis=alt.Axis(labelLimit=200, grid=True))  # fmt: skip
    x = alt.X("speedup:Q", scale=alt.Scale(type="log", nice=False, padding=15), title="times eager's throughput",
              axis=alt.Axis(format="~g"))  # fmt: skip
    rows = base().transform_calculate(case_name=_joined(frame, names))
    kinds = list(dict.fromkeys(shown["impl"]))
    dots = rows.mark_point(size=70).encode(
        x=x, y=y, tooltip=tips(*_TIPS, "speedup:Q"),
        color=alt.Color("impl:N", title=None, sort=kinds, scale=_palette(kinds)),
        shape=alt.Shape("impl:N", title=None, sort=kinds, scale=alt.Scale(domain=kinds)),
    )  # fmt: skip
    one = base("notes").mark_rule(strokeDash=[4, 3]).encode(x=x)
    return Figure(
        name=f"speedup-{mode}",
        title=f"Implementations against eager, {word(mode)}",
        caption="Right of the dashed line is faster than eager; the 25 cases that gain most.",
        kind="sweep",
        chart=alt.layer(one, dots),
        rows=list(shown.index),
        notes=[{"speedup": 1}],
        height=max(80, 20 * len(most)),
    )


def _joined(frame: pd.DataFrame, names: tuple[str, ...] = _NAMES) -> str:
    """The columns that vary as a Vega expression that joins them."""
    varying = [name for name in names if frame[name].nunique() > 1] or [names[0]]
    return " + ' ' + ".join(f"datum.{name}" for name in varying)


def _palette(impls: list[str]) -> Any:
    import altair as alt

    return alt.Scale(range=list(COLOURS))


__all__ = ["section"]
