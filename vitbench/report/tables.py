"""Rows as a table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

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


def _spread(speed: Speed) -> str:
    if speed.latency_ms_p50 is None or speed.latency_ms_ci_low is None or speed.latency_ms_ci_high is None:
        return ""
    return f"{(speed.latency_ms_ci_high - speed.latency_ms_ci_low) / 2 / speed.latency_ms_p50:.1%}"


def _over(row: Row, baseline: Baseline | None) -> str:
    base = baseline.of(row) if baseline else None
    return f"{row.speed.img_per_s / base:.2f}" if row.speed.img_per_s and base else ""


def sweep_table(rows: Sequence[Row], baseline: Baseline | None = None) -> Table:
    """One line a row; columns that hold nothing are left out."""
    speedup = speedups(rows)
    columns: dict[str, list[str]] = {
        "model": [row.model for row in rows],
        "impl": [row.impl for row in rows],
        "mode": [row.mode for row in rows],
        "dtype": [row.dtype for row in rows],
        "layout": [row.layout for row in rows],
        "px": [row.resolution for row in rows],
        "batch": [str(row.batch) for row in rows],
        "img/s": [_number(row.speed.img_per_s) for row in rows],
        "img/s predicted": [_number(row.speed.predicted_img_per_s) for row in rows],
        "ms": [_number(row.speed.latency_ms_p50) for row in rows],
        "±": [_spread(row.speed) for row in rows],
        "x eager": [f"{speedup[row.case]:.2f}" if row.case in speedup else "" for row in rows],
        "x baseline": [_over(row, baseline) for row in rows],
        "top-1": [_number(baseline.top1_of(row)) if baseline else "" for row in rows],
        "MiB": [_number(row.memory.peak_mem_mib) for row in rows],
        "MiB predicted": [_number(row.memory.predicted_mem_mib) for row in rows],
        "J/img": [_number(row.energy.energy_j_per_img) for row in rows],
        "mfu": [f"{row.utilisation.mfu:.0%}" if row.utilisation.mfu is not None else "" for row in rows],
        "note": [
            f"{row.status}: {row.reason}" if row.status != "ok" else row.reason if row.health.valid is False else ""
            for row in rows
        ],
    }
    text = {"model", "impl", "mode", "dtype", "layout", "note"}
    table = Table(box=None, pad_edge=False)
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    for name in shown:
        table.add_column(name, justify="left" if name in text else "right", no_wrap=name != "note", overflow="fold")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    return table
