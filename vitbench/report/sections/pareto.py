"""Published top-1 against what a model costs: the front is what nothing beats on both, the rest is faded.

The front is found inside the picture, so that it is that of the rows which a filter leaves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from vitbench.report.figures import COLOURS, INK, Figure, Section, base, number, tips
from vitbench.report.reading import Results


@dataclass(frozen=True)
class Cost:
    """A column across, and whether less of it is better."""

    name: str
    kind: str
    column: str
    title: str
    less: bool = True


COSTS = (
    Cost("params", "models", "params_m", "parameters, millions"),
    Cost("macs", "models", "gmacs", "multiply-accumulates of an image, 10^9"),
    Cost("throughput", "sweep", "img_per_s", "images per second", less=False),
    Cost("predicted-throughput", "predicted", "img_per_s", "predicted images per second", less=False),
    Cost("latency", "sweep", "latency_ms_p50", "milliseconds, batch 1"),
    Cost("memory", "sweep", "peak_mem_mib", "peak MiB, batch 1"),
    Cost("energy", "sweep", "energy_j_per_img", "joules per image"),
)
#: Pixels of a name beside its point, for which the axis leaves room; in a narrow picture there are no names.
_WIDE, _NAME = "width > 340", "(width > 450 ? 115 : 88)"
#: Dominated points that are drawn at most.
FADED = 400


def section(results: Results) -> Section:
    """A front for each cost that is known, in inference."""
    figures, facts, missing = [], [], []
    for cost in COSTS:
        frame = _rows(results, cost)
        if cost.kind == "sweep" and frame["model"].nunique() < 2:
            missing.append(f"top-1 against {cost.title}: fewer than two models with published top-1 have it measured")
            continue
        if cost.kind == "predicted":
            figures += [_figure(cost, of_gpu, str(gpu)) for gpu, of_gpu in frame.groupby("gpu")]
            continue
        figures.append(_figure(cost, frame))
        best = front(frame, cost.column, cost.less)
        told = ", ".join(
            f"{model} ({top1:g} %, {number(price)})"
            for model, top1, price in zip(best["model"], best["top1"], best["cost"], strict=True)
        )
        facts.append(f"top-1 against {cost.title}, front: {told}")
    return Section(name="pareto", title="Accuracy against cost", figures=figures, facts=facts, missing=missing)


def _rows(results: Results, cost: Cost) -> pd.DataFrame:
    frame = results.ok(cost.kind)
    frame = frame[frame["top1"].gt(0) & frame[cost.column].gt(0)]
    if cost.kind == "models":
        return frame[frame["exaflops"].isna()]
    if cost.kind == "predicted":
        return frame
    frame = frame[frame["mode"] == "infer"]
    return frame[frame["batch"] == 1] if cost.name in ("latency", "memory") else frame


def front(frame: pd.DataFrame, column: str, less: bool) -> pd.DataFrame:
    """The rows that none beats on both, the cheapest first, with their `cost`."""
    ordered = frame.assign(cost=frame[column]).sort_values(["cost", "top1"], ascending=[less, False])
    before = ordered["top1"].cummax().shift(fill_value=0)
    return ordered[ordered["top1"] > before]


def _figure(cost: Cost, frame: pd.DataFrame, gpu: str = "") -> Figure:
    import altair as alt

    x = alt.X(f"{cost.column}:Q", title=cost.title, axis=alt.Axis(format=",.3~r", tickCount=6, labelOverlap=True),
              scale=alt.Scale(type="log", nice=False, padding=12))  # fmt: skip
    y = alt.Y("top1:Q", title="published ImageNet top-1, %", scale=alt.Scale(zero=False, padding=12))
    order: Literal["ascending", "descending"] = "ascending" if cost.less else "descending"
    cheapest_first = [alt.SortField(cost.column, order=order), alt.SortField("top1", order="descending")]
    rows = (
        base()
        .transform_window(best="max(top1)", frame=[None, 0], sort=cheapest_first)
        .transform_window(before="lag(best)", sort=cheapest_first)
        .transform_calculate(front="!isValid(datum.before) || datum.top1 > datum.before")
    )
    best = rows.transform_filter("datum.front")
    others = (
        rows.transform_filter("!datum.front")
        .transform_window(nth="row_number()")
        .transform_joinaggregate(all="count()")
        .transform_filter(f"datum.nth % ceil(datum.all / {FADED}) === 0")
    )
    told = ["model:N", "top1:Q", f"{cost.column}:Q", "resolution:N", "training_data:N", "source:N"]
    if gpu:
        told = [
            "model:N",
            "top1:Q",
            "img_per_s:Q",
            "low:Q",
            "high:Q",
            "resolution:N",
            "dtype:N",
            "batch:Q",
            "top1_source:N",
        ]
    if cost.kind == "sweep":
        told[1:1] = ["impl:N", "dtype:N", "batch:Q", "device_name:N"]
    faded = others.mark_point(opacity=0.35, color=INK, size=40).encode(x=x, y=y, tooltip=tips(*told))
    line = best.mark_line(interpolate="step-after" if cost.less else "step-before", color=COLOURS[0], strokeWidth=1.5)
    dots = best.mark_point(color=COLOURS[0], size=70).encode(x=x, y=y, tooltip=tips(*told))
    # A name where its neighbours on the front leave it room.
    named = (
        best.transform_window(above="lead(top1)", frame=[None, None], sort=[alt.SortField("top1", order="ascending")])
        .transform_window(below="lag(top1)", sort=[alt.SortField("top1", order="ascending")])
        .transform_joinaggregate(highest="max(top1)", lowest="min(top1)")
        .transform_calculate(
            name=f"{_WIDE} ? replace(datum.model, 'timm:', '') : ''", room="0.05 * (datum.highest - datum.lowest)"
        )
        .transform_filter("!isValid(datum.above) || datum.above - datum.top1 > datum.room")
        .transform_filter("!isValid(datum.above) || !isValid(datum.below) || datum.top1 - datum.below > datum.room")
        .mark_text(
            align="right" if cost.less else "left", dx=-7 if cost.less else 7, dy=-5, fontSize=10, limit=alt.expr(_NAME)
        )
        .encode(x=x, y=y, text="name:N")
    )
    # A line that none sees, as far out on the side of the names as they reach.
    near, far = ("first", "last") if cost.less else ("last", "first")
    outer = (
        rows.transform_aggregate(first=f"min({cost.column})", last=f"max({cost.column})")
        .transform_calculate(share=f"{_WIDE} ? ({_NAME} + 10) / (width - {_NAME} - 34) : 0")
        .transform_calculate(outer=f"datum.{near} * pow(datum.{near} / datum.{far}, datum.share)")
        .mark_rule(opacity=0)
        .encode(x=alt.X("outer:Q", title=cost.title))
    )
    return Figure(
        name=f"pareto-{cost.name}" + re.sub(r"[^a-z0-9]+", "-", f" {gpu}".lower()).rstrip("-"),
        title=f"Top-1 against {cost.title}" + (f", {gpu}" if gpu else ""),
        caption="Blue: nothing is better on both axes. Grey: something is."
        + (f" Of {len(frame):,} models some {FADED} are grey." if len(frame) > 2 * FADED else ""),
        kind=cost.kind,
        chart=alt.layer(faded, line.encode(x=x, y=y), dots, named, outer),
        rows=list(frame.index),
        height=380,
    )


__all__ = ["COSTS", "front", "section"]
