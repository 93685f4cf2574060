"""Kernels beside their rivals as a table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.columns import Column
from vitbench.kernel_bench.rows import KernelRow


def table(rows: Sequence[KernelRow]) -> list[Column]:
    """A row for each implementation of a case, in the order of the file."""
    return [
        Column("kernel", [f"{row.kernel}/{row.case}" for row in rows], "key"),
        Column("pass", [row.pass_ for row in rows], "word"),
        Column("dtype", [row.dtype for row in rows], "word"),
        Column("impl", [row.impl for row in rows], "word"),
        Column("us", [row.median_us for row in rows], show=_tenth),
        Column("±", [_half_interval(row) for row in rows]),
        Column("graph us", [row.graph_us for row in rows], show=_tenth),
        Column("x eager", [row.speedup_over_eager for row in rows], show=_ratio),
        Column("floor", [row.floor_share for row in rows], show=_ratio),
        Column("note", [f"{row.status}: {row.reason}" if row.status != "ok" else row.reason for row in rows], "note"),
    ]


def _tenth(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _half_interval(row: KernelRow) -> str:
    """Half the 95 % interval of the median over the median."""
    if row.median_us is None or row.ci_low_us is None or row.ci_high_us is None:
        return ""
    return f"{(row.ci_high_us - row.ci_low_us) / 2 / row.median_us:.1%}"


__all__ = ["table"]
