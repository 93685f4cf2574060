"""Joules an image over the batch: gross, and net of what an idle device draws."""

from __future__ import annotations

from vitbench.report.figures import (
    Figure,
    Section,
    base,
    colour,
    curves,
    modes,
    number,
    shape,
    steps,
    tips,
    upward,
    word,
)
from vitbench.report.reading import Results

_NAMES = ("model", "impl", "dtype", "layout", "resolution", "device_name")


def section(results: Results) -> Section:
    """Pictures of the energy that `bench` measured."""
    import altair as alt

    frame = results.ok("sweep")
    frame = frame[frame["energy_j_per_img"].gt(0)]
    figures, facts = [], []
    for mode in modes(frame):
        of_mode = frame[frame["mode"] == mode]
        found = curves(of_mode, _NAMES, "batch")
        x = steps("batch", of_mode["batch"], "batch size")
        told = [
            "model:N",
            "impl:N",
            "dtype:N",
            "batch:Q",
            "energy_j_per_img:Q",
            "energy_net_j_per_img:Q",
            "avg_power_w:Q",
        ]
        y = upward("energy_j_per_img", "joules per image")
        gross = base().mark_line().encode(x=x, y=y, color=colour())
        dots = base().mark_point().encode(x=x, y=y, color=colour(), shape=shape(), tooltip=tips(*told))
        net = base().transform_filter("datum.energy_net_j_per_img > 0").mark_line(strokeDash=[4, 3])
        figures.append(
            Figure(
                name=f"energy-over-batch-{mode}",
                title=f"Energy of an image over the batch, {word(mode)}",
                caption="Solid is gross, dashed is net of the idle device.",
                kind="sweep",
                chart=alt.layer(
                    gross, net.encode(x=x, y=upward("energy_net_j_per_img", "joules per image"), color=colour()), dots
                ),
                rows=found.rows,
                series=found.series,
            )
        )
        least = of_mode.sort_values("energy_j_per_img").iloc[0]
        what = f"{least['model']} {least['impl']} {least['dtype']} at batch {least['batch']:.0f}"
        facts.append(f"least, {word(mode)}: {what}, {number(least['energy_j_per_img'])} J")
    missing = [
        *(
            []
            if figures
            else ["No row has energy: it is measured where the device or the CPU has a counter (`vitbench doctor`)."]
        ),
        "Power over time is not drawn: result files hold its mean alone.",
    ]
    return Section(name="energy", title="Energy", figures=figures, facts=facts, missing=missing)


__all__ = ["section"]
