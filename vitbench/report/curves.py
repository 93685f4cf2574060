"""Curves over the batch size: throughput, latency, and memory predicted beside measured; one batch size is ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from vitbench.drawing import INSTALL, plotting_missing, save
from vitbench.results.row import Row, as_dict


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    frame = pd.DataFrame([as_dict(row) for row in rows if row.status == "ok"])
    if frame.empty:
        return frame
    varying = [name for name in ("model", "impl", "dtype", "layout", "resolution") if frame[name].nunique() > 1]
    frame["series"] = frame[varying or ["model"]].astype(str).agg(" ".join, axis=1)
    return frame


def _batch_axis(data: pd.DataFrame) -> Any:
    """Logarithmic, with a tick at each batch size that was run and nowhere else."""
    import altair as alt

    ticks = alt.Axis(values=sorted(data["batch"].unique().tolist()), format="d")
    return alt.X("batch:Q", scale=alt.Scale(type="log", base=2, nice=False, padding=8), axis=ticks, title="batch size")


def _log() -> Any:
    """From the smallest to the largest value, instead of to the next powers of ten."""
    import altair as alt

    return alt.Scale(type="log", nice=False, padding=8)


def _log_axis(values: pd.Series[float]) -> Any:
    """With ticks that all have room for their numbers: 1, 2 and 5, and where values are near each other 1 to 9."""
    import altair as alt

    low, high = values.min(), values.max()
    digits = (1, 2, 5) if high > 8 * low else range(1, 10)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return alt.Axis(values=[digit * 10**power for power in powers for digit in digits])


def _panel(data: pd.DataFrame, column: str, title: str, mode: str, log_y: bool) -> Any:
    import altair as alt

    return (
        alt.Chart(data, title=f"{title}, {'training' if mode == 'train' else 'inference'}", width=380, height=260)
        .mark_line(point=True)
        .encode(
            x=_batch_axis(data),
            y=alt.Y(f"{column}:Q", scale=_log(), axis=_log_axis(data[column]), title=title)
            if log_y
            else alt.Y(f"{column}:Q", scale=alt.Scale(zero=True), title=title),
            color=alt.Color("series:N", title=None),
            tooltip=["case:N", f"{column}:Q"],
        )
    )


def _ranking(data: pd.DataFrame, column: str, title: str, mode: str, fastest_first: str) -> Any:
    """A dot for each series, a line apart: where all have one batch size there is nothing to draw a curve over."""
    import altair as alt

    batch = data["batch"].iloc[0]
    heading = f"{title}, {'training' if mode == 'train' else 'inference'}, batch {batch}"
    values = alt.X(f"{column}:Q", scale=_log(), title=title)
    names = alt.Y("series:N", sort=fastest_first, title=None, axis=alt.Axis(grid=True, labelLimit=320))
    chart = alt.Chart(data, title=heading, width=380, height=alt.Step(14))
    return chart.mark_point(filled=True, size=50).encode(x=values, y=names, tooltip=["case:N", f"{column}:Q"])


def throughput_chart(rows: Sequence[Row]) -> Any | None:
    """Images a second and milliseconds a batch over the batch size, by mode; None without timed rows."""
    import altair as alt

    frame = _frame(rows)
    if frame.empty or not frame["img_per_s"].notna().any():
        return None
    frame = frame[frame["img_per_s"].notna()]
    columns = []
    for mode, data in frame.groupby("mode", sort=True):
        slim = data[["batch", "series", "case", "img_per_s", "latency_ms_p50"]]
        if slim["batch"].nunique() == 1 and len(slim) > 1:
            columns.append(
                _ranking(slim, "img_per_s", "images per second", str(mode), "-x")
                | _ranking(slim, "latency_ms_p50", "milliseconds per batch", str(mode), "x")
            )
            continue
        columns.append(
            _panel(slim, "img_per_s", "images per second", str(mode), False)
            & _panel(slim, "latency_ms_p50", "milliseconds per batch", str(mode), True)
        )
    return alt.hconcat(*columns)


def memory_chart(rows: Sequence[Row]) -> Any | None:
    """Peak memory over the batch size: predicted as lines, measured as points; None without either."""
    import altair as alt

    frame = _frame(rows)
    if frame.empty or not (frame["predicted_mem_mib"].notna().any() or frame["peak_mem_mib"].notna().any()):
        return None
    panels = []
    for mode, data in frame.groupby("mode", sort=True):
        slim = data[["batch", "series", "case", "predicted_mem_mib", "peak_mem_mib"]].sort_values("batch")
        x = _batch_axis(slim)
        color = alt.Color("series:N", title=None)
        scale, ticks = _log(), _log_axis(pd.concat([slim["predicted_mem_mib"], slim["peak_mem_mib"]]).dropna())
        lines = (
            alt.Chart(slim[slim["predicted_mem_mib"].notna()])
            .mark_line()
            .encode(
                x=x,
                y=alt.Y(
                    "predicted_mem_mib:Q", scale=scale, axis=ticks, title="peak MiB (line predicted, point measured)"
                ),
                color=color,
                tooltip=["case:N", "predicted_mem_mib:Q"],
            )
        )
        points = (
            alt.Chart(slim[slim["peak_mem_mib"].notna()])
            .mark_point(filled=True, size=60)
            .encode(
                x=x,
                y=alt.Y("peak_mem_mib:Q", scale=scale, axis=ticks),
                color=color,
                tooltip=["case:N", "peak_mem_mib:Q"],
            )
        )
        title = f"memory, {'training' if mode == 'train' else 'inference'}"
        panels.append((lines + points).properties(title=title, width=380, height=300))
    return alt.hconcat(*panels)


__all__ = ["INSTALL", "memory_chart", "plotting_missing", "save", "throughput_chart"]
