"""Rows as a table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from vitbench.columns import Column, filled, table
from vitbench.report.timm import Baseline
from vitbench.results.row import Row, Speed


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _comparison(row: Row) -> tuple[object, ...]:
    return (row.model, row.mode, row.dtype, row.layout, row.resolution, row.batch, row.device)


def speedups(rows: Sequence[Row]) -> dict[str, float]:
    """Throughput over eager's of the same case, by case id; timed interleaved, so drift cancels."""
    eager = {_comparison(row): row.speed.img_per_s for row in rows if row.impl == "eager" and row.speed.img_per_s}
    return {
        row.case: row.speed.img_per_s / base
        for row in rows
        if row.impl != "eager" and row.speed.img_per_s and (base := eager.get(_comparison(row)))
    }


def half_interval(speed: Speed) -> float | None:
    """Half the 95 % interval of the median over the median."""
    if speed.latency_ms_p50 is None or speed.latency_ms_ci_low is None or speed.latency_ms_ci_high is None:
        return None
    return (speed.latency_ms_ci_high - speed.latency_ms_ci_low) / 2 / speed.latency_ms_p50


def _share(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _over(row: Row, baseline: Baseline | None) -> float | None:
    base = baseline.of(row) if baseline else None
    return row.speed.img_per_s / base if row.speed.img_per_s and base else None


def _note(row: Row) -> str:
    return f"{row.status}: {row.reason}" if row.status != "ok" else row.reason if row.health.valid is False else ""


def sweep_columns(rows: Sequence[Row], baseline: Baseline | None = None) -> list[Column]:
    """What a sweep found, a row each; columns that hold nothing are left out."""
    speedup = speedups(rows)
    columns = (
        Column("model", [row.model for row in rows], "key"),
        Column("impl", [row.impl for row in rows], "word"),
        Column("mode", [row.mode for row in rows], "word"),
        Column("dtype", [row.dtype for row in rows], "word"),
        Column("layout", [row.layout for row in rows], "word"),
        Column("px", [row.resolution for row in rows]),
        Column("batch", [row.batch for row in rows]),
        Column("img/s", [row.speed.img_per_s for row in rows], show=_number),
        Column("img/s predicted", [row.speed.predicted_img_per_s for row in rows], show=_number),
        Column("ms", [row.speed.latency_ms_p50 for row in rows], show=_number),
        Column("±", [_share(half_interval(row.speed), 1) for row in rows]),
        Column("x eager", [speedup.get(row.case) for row in rows], show=_ratio),
        Column("x baseline", [_over(row, baseline) for row in rows], show=_ratio),
        Column("top-1", [baseline.top1_of(row) if baseline else None for row in rows], show=_number),
        Column("MiB", [row.memory.peak_mem_mib for row in rows], show=_number),
        Column("MiB predicted", [row.memory.predicted_mem_mib for row in rows], show=_number),
        Column("J/img", [row.energy.energy_j_per_img for row in rows], show=_number),
        Column("mfu", [_share(row.utilisation.mfu, 0) for row in rows]),
        Column("note", [_note(row) for row in rows], "note"),
    )
    return filled(columns)


def sweep_table(rows: Sequence[Row], baseline: Baseline | None = None) -> Table:
    """The same as rich draws it, as wide as it is."""
    return table(sweep_columns(rows, baseline))
