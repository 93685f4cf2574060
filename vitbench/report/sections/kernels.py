"""Kernels: roofline, share of the floor, where audited time goes, ours beside peers, modelled beside published."""

from __future__ import annotations

import pandas as pd

from vitbench.report.figures import (
    COLOURS,
    INK,
    SHAPES,
    Figure,
    Section,
    base,
    colour,
    label,
    number,
    shape,
    short_numbers,
    tips,
    upward,
)
from vitbench.report.kinds import PIPES
from vitbench.report.reading import Results

_TITLES = {"sfu": "special", "lsu": "load/store", "alu": "integer", "bytes": "memory", "l2": "L2"}
_NAME = "datum.kernel + ' ' + replace(datum.pass, regexp('_[0-9]+$'), '')"
_TIPS = (
    "kernel:N",
    "case:N",
    "pass:N",
    "dtype:N",
    "arch:N",
    "modelled_us:Q",
    "floor_us:Q",
    "floor_share:Q",
    "bound_by:N",
)


def section(results: Results) -> Section:
    """Pictures of the audit's tables, of `make kernels-bench`, and of published times."""
    audit = results.ok("audit")
    audit = audit[audit["modelled_us"].gt(0) & audit["floor_us"].gt(0)]
    figures: list[Figure] = []
    facts: list[str] = []
    if len(audit):
        products = audit[audit["matrix_us"].gt(0) & audit["bytes_us"].gt(0)]
        figures += [*([_roofline(products)] if len(products) else []), _floors(audit)]
        for arch, of_arch in audit.groupby("arch"):
            figures.append(_pipes(of_arch, str(arch)))
            share = (of_arch["floor_us"] / of_arch["modelled_us"]).median()
            facts.append(f"{arch}, modelled: {len(of_arch)} launches, half of them at {share:.0%} of the floor or more")
    timed = results.ok("kernels")
    timed = timed[timed["median_us"].gt(0)]
    for (kernel, way), group in timed.groupby(["kernel", "pass"]):
        figures.append(_peers(group, f"{kernel} {way}"))
    facts += [
        f"{kernel} {way}: {impl} over eager, median {group['speedup_over_eager'].median():.2f} of {len(group)} cases"
        for (kernel, way, impl), group in timed[timed["speedup_over_eager"].gt(0)].groupby(["kernel", "pass", "impl"])
        if impl != "eager"
    ]
    published = results.frames["published kernel times"]
    published = published[published["measured_us"].gt(0) & published["modelled_us"].gt(0)]
    if len(published):
        figures.append(_published(published, facts))
    missing = [] if len(audit) else ["No audit is among the files: `make audit-accept` writes results/baseline."]
    if not len(timed):
        missing.append("No kernel is timed: `make kernels-bench` does so on a GPU. What is drawn is modelled.")
    return Section(name="kernels", title="Kernels", figures=figures, facts=facts, missing=missing)


def _roofline(frame: pd.DataFrame) -> Figure:
    """Both axes are shares of the card, so that several cards fit one picture."""
    import altair as alt

    shown = frame.sort_values("arch")
    rows = base().transform_calculate(
        intensity="datum.matrix_us / datum.bytes_us", rate="datum.matrix_us / datum.modelled_us"
    )
    x = alt.X("intensity:Q", title="arithmetic intensity, times the card's balance",
              scale=alt.Scale(type="log", nice=False, padding=10), axis=alt.Axis(format="~g", tickCount=6))  # fmt: skip
    y = alt.Y("rate:Q", title="modelled share of the card's matrix rate", axis=alt.Axis(format="~%", tickCount=5),
              scale=alt.Scale(type="log", nice=False, padding=10))  # fmt: skip
    intensity = shown["matrix_us"] / shown["bytes_us"]
    roof = [
        {"intensity": at, "rate": min(1.0, at)}
        for at in sorted({min(1.0, float(intensity.min())), 1.0, max(1.0, float(intensity.max()))})
    ]
    line = base("notes").mark_line(color=INK).encode(x=x, y=y)
    dots = rows.mark_point(size=28, opacity=0.75).encode(x=x, y=y, color=colour(), shape=shape(), tooltip=tips(*_TIPS))
    return Figure(
        name="kernels-roofline",
        title="Roofline of audited launches",
        caption="The grey roof is what memory (rising) and the matrix unit (flat) allow; rates are modelled. Above it "
        "are launches that are modelled to take less than their bytes at the memory's rate.",
        kind="audit",
        chart=alt.layer(line, dots),
        rows=list(shown.index),
        series=list(shown["arch"]),
        notes=roof,
    )


def _floors(frame: pd.DataFrame) -> Figure:
    import altair as alt

    shown = frame.sort_values("arch")
    rows = base().transform_calculate(name=_NAME)
    y = alt.Y("name:N", title=None, axis=alt.Axis(labelLimit=230, grid=True))
    x = alt.X("floor_share:Q", title="floor over modelled time", axis=alt.Axis(format="~%", tickCount=5))
    each = rows.mark_point(size=26, opacity=0.6).encode(
        x=x, y=y, color=colour(), shape=shape(), tooltip=tips(*_TIPS), yOffset=alt.YOffset("arch:N")
    )
    return Figure(
        name="kernels-floor-share",
        title="How near launches come to their floor",
        caption="A point a launch, modelled; at the dashed line it takes no longer than it must.",
        kind="audit",
        chart=alt.layer(base("notes").mark_rule(strokeDash=[4, 3]).encode(x=x), each),
        rows=list(shown.index),
        series=list(shown["arch"]),
        notes=[{"floor_share": 1}],
        height=18 * _names(shown),
    )


def _names(frame: pd.DataFrame) -> int:
    return len(set(frame["kernel"] + " " + frame["pass"].str.replace(r"_[0-9]+$", "", regex=True)))


def _pipes(frame: pd.DataFrame, arch: str) -> Figure:
    import altair as alt

    names = {pipe: _TITLES.get(pipe, pipe) for pipe in PIPES}
    shares = base().transform_calculate(
        name=_NAME, **{names[pipe]: f"datum.{pipe}_us / datum.modelled_us" for pipe in PIPES}
    )
    cells = (
        shares.transform_fold(list(names.values()), as_=["pipe", "share"])
        .transform_aggregate(share="median(share)", launches="count()", groupby=["name", "pipe"])
        .encode(
            x=alt.X(
                "pipe:N",
                sort=list(names.values()),
                title=None,
                axis=alt.Axis(orient="top", labelAngle=-90, ticks=False),
            ),
            y=alt.Y("name:N", title=None, axis=alt.Axis(labelLimit=230, ticks=False)),
        )
    )
    told = ["name:N", "pipe:N", alt.Tooltip("share:Q", format=".0%"), "launches:Q"]
    heat = cells.mark_rect().encode(
        color=alt.Color("share:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=None), tooltip=told
    )
    ink = alt.condition("datum.share > 0.55", alt.value("white"), alt.value("#222"))
    text = (
        cells.transform_calculate(percent="round(100 * datum.share)")
        .mark_text(fontSize=10)
        .encode(text="percent:Q", color=ink)
    )
    return Figure(
        name=f"kernels-pipes-{arch}",
        title=f"Busy share of each pipe, {arch}, {', '.join(sorted(set(frame['card']) - {''})) or 'unknown card'}",
        caption="Percent of the modelled time; the median over the launches of a pass. What no pipe fills is waiting.",
        kind="audit",
        chart=alt.layer(heat, text),
        rows=list(frame.index),
        height=20 * _names(frame) + 60,
    )


def _peers(frame: pd.DataFrame, title: str) -> Figure:
    import altair as alt

    kinds = sorted(frame["impl"].unique())
    x = alt.X("median_us:Q", title="microseconds of a call", scale=alt.Scale(type="log", nice=False, padding=12),
              axis=short_numbers(tickCount=6))  # fmt: skip
    y = alt.Y("name:N", title=None, axis=alt.Axis(labelLimit=230, grid=True))
    rows = base().transform_calculate(name="datum.case + ' ' + datum.dtype")
    whiskers = rows.mark_rule().encode(x=alt.X("ci_low_us:Q", title=None), x2="ci_high_us:Q", y=y)
    dots = rows.mark_point().encode(
        x=x, y=y, color=alt.Color("impl:N", title=None, sort=kinds, scale=alt.Scale(domain=kinds, range=list(COLOURS))),
        shape=alt.Shape("impl:N", title=None, sort=kinds, scale=alt.Scale(domain=kinds, range=list(SHAPES))),
        tooltip=tips("impl:N", "case:N", "dtype:N", "median_us:Q", "graph_us:Q", "floor_share:Q",
                     "speedup_over_eager:Q"),
    )  # fmt: skip
    return Figure(
        name=f"kernels-peers-{title.replace(' ', '-').replace('+', '-')}",
        title=f"{title}: ours beside peers",
        caption="Left is faster; whiskers are 95 % intervals of the median.",
        kind="kernels",
        chart=alt.layer(whiskers, dots),
        rows=list(frame.index),
        height=max(80, 20 * label(frame, ("case", "dtype")).nunique()),
    )


def _published(frame: pd.DataFrame, facts: list[str]) -> Figure:
    import altair as alt

    both = frame["modelled_us"] + frame["launch_us"].fillna(0)
    facts.append(f"{len(frame)} published kernel times: modelled / measured has the median "
                 f"{number((both / frame['measured_us']).median())}")  # fmt: skip
    ends = [{"measured_us": end, "both": end} for end in (frame["measured_us"].min(), frame["measured_us"].max())]
    rows = base().transform_calculate(both="datum.modelled_us + (datum.launch_us || 0)")
    x = alt.X("measured_us:Q", title="measured microseconds, as published", axis=short_numbers(tickCount=6),
              scale=alt.Scale(type="log", nice=False, padding=12))  # fmt: skip
    y = upward("both", "modelled microseconds")
    told = ["kernel:N", "shape:N", "card:N", "measured_us:Q", "modelled_us:Q", "bound:N", "use:N", "source:N"]
    dots = rows.mark_point().encode(x=x, y=y, color=colour(), shape=shape(), tooltip=tips(*told))
    line = base("notes").mark_line(color=INK, strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y)
    return Figure(
        name="kernels-published",
        title="Modelled kernel times beside published ones",
        caption="On the dashed line they are equal.",
        kind="published kernel times",
        chart=alt.layer(line, dots),
        rows=list(frame.index),
        series=list(frame["card"]),
        notes=ends,
    )


__all__ = ["section"]
