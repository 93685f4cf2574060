"""Rows as a table on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from vitbench.columns import Column
from vitbench.report.timm import Baseline
from vitbench.results.row import Row, Speed


def number(value: float | None, digits: int = 4) -> str:
    """With four digits, and all of them before the point; "" for None."""
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


#: What the columns of a sweep's table mean.
EXPLAINED = {
    "model": "`vitbench list` says what is published about it",
    "impl": "eager, sdpa, flex, compile, max-autotune: PyTorch's; fused: the kernels of vitkernels",
    "mode": "infer: a forward pass; train: forward, backward and a step of AdamW",
    "dtype": "amp: fp32 weights, bf16 autocast; tf32: fp32 with TF32 matrix products",
    "layout": "of images in memory: nchw, or nhwc (channels_last)",
    "px": "side of the square image, or height x width",
    "batch": "images in a step",
    "img/s": "batch / ms: images in a second at the median step",
    "img/s predicted": "what `vitbench predict` says of eager inference on this card",
    "ms": "median time of a step",
    "±": "half the 95 % interval of that median, over the median",
    "x eager": "img/s over that of eager in the same case, timed in turns with it",
    "x baseline": "img/s over that of the file named by --baseline",
    "top-1": "accuracy that the baseline's file gives, in per cent",
    "MiB": "peak memory of a step: on a GPU what torch allocated, on a CPU what its allocator held",
    "MiB predicted": "the same, simulated without running anything; empty for compilers",
    "J/img": "energy for an image, idle power included",
    "mfu": "matrix products done in a second over what the machine reached at large matrices in this dtype",
    "note": "why a case failed, or why its time does not count",
}


def explained(columns: Sequence[Column]) -> list[str]:
    """A line for each column of a sweep's table."""
    width = max(len(column.name) for column in columns)
    return [f"{column.name:{width}}  {EXPLAINED[column.name]}" for column in columns]


def sweep_columns(rows: Sequence[Row], baseline: Baseline | None = None) -> list[Column]:
    """What a sweep found, a row each; some columns may hold nothing."""
    speedup = speedups(rows)
    return [
        Column("model", [row.model for row in rows], "key"),
        Column("impl", [row.impl for row in rows], "word"),
        Column("mode", [row.mode for row in rows], "word"),
        Column("dtype", [row.dtype for row in rows], "word"),
        Column("layout", [row.layout for row in rows], "word"),
        Column("px", [row.resolution for row in rows]),
        Column("batch", [row.batch for row in rows]),
        Column("img/s", [row.speed.img_per_s for row in rows], show=number),
        Column("img/s predicted", [row.speed.predicted_img_per_s for row in rows], show=number),
        Column("ms", [row.speed.latency_ms_p50 for row in rows], show=number),
        Column("±", [_share(half_interval(row.speed), 1) for row in rows]),
        Column("x eager", [speedup.get(row.case) for row in rows], show=_ratio),
        Column("x baseline", [_over(row, baseline) for row in rows], show=_ratio),
        Column("top-1", [baseline.top1_of(row) if baseline else None for row in rows], show=number),
        Column("MiB", [row.memory.peak_mem_mib for row in rows], show=number),
        Column("MiB predicted", [row.memory.predicted_mem_mib for row in rows], show=number),
        Column("J/img", [row.energy.energy_j_per_img for row in rows], show=number),
        Column("mfu", [_share(row.utilisation.mfu, 0) for row in rows]),
        Column("note", [_note(row) for row in rows], "note"),
    ]
