"""What stands out in a sweep, in a few lines below its table. Imports no torch."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from vitbench.report.tables import half_interval, number, speedups
from vitbench.results.row import Row

#: A batch whose throughput no larger one passes by more than this has filled the machine.
GROWTH = 0.05
#: Of the median; what is wider says little about small differences.
WIDE = 0.05
#: Memory per image over what it was at smaller batches.
JUMP = 1.5


def _some(items: Sequence[str], most: int = 3) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more


def _curves(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows that differ in nothing but the batch, smallest first."""
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[row.model, row.impl, row.mode, row.dtype, row.layout, row.resolution, row.device].append(row)
    for members in found.values():
        yield sorted(members, key=lambda row: row.batch)


def _named(row: Row) -> str:
    return f"{row.model} {row.impl} {row.mode} {row.dtype} {row.resolution} px"


def _fastest(rows: Sequence[Row]) -> Iterator[str]:
    best: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        of = best[row.model, row.mode]
        if (row.speed.img_per_s or 0) > (of[row.resolution].speed.img_per_s or 0 if row.resolution in of else 0):
            of[row.resolution] = row
    for (model, mode), by_size in best.items():
        told = [
            f"{number(row.speed.img_per_s)} img/s at {size} px ({row.impl} {row.dtype} batch {row.batch})"
            for size, row in by_size.items()
        ]
        yield f"fastest {model} {mode}: {_some(told)}"


def _filled(rows: Sequence[Row]) -> Iterator[str]:
    found = defaultdict(list)
    for curve in _curves(rows):
        rates = [row.speed.img_per_s or 0.0 for row in curve]
        if len(curve) < 3:
            continue
        first = next(row for row, rate in zip(curve, rates, strict=True) if max(rates) <= (1 + GROWTH) * rate)
        if first is not curve[-1]:
            found[first.batch].append(_named(first))
    for batch, names in sorted(found.items()):
        yield f"throughput no longer grows from batch {batch}: {_some(names)}"


def _wide(rows: Sequence[Row]) -> Iterator[str]:
    widths = [(2 * half, row) for row in rows if (half := half_interval(row.speed)) is not None]
    wide = sorted(((width, row) for width, row in widths if width > WIDE), key=lambda one: -one[0])
    if wide:
        told = [f"{_named(row)} batch {row.batch} ±{width / 2:.1%}" for width, row in wide]
        yield (
            f"95 % interval wider than ±{WIDE / 2:.1%} of the median in {len(wide)} of {len(widths)} cases "
            f"(a longer --max-time narrows it): {_some(told)}"
        )


def _gained(rows: Sequence[Row]) -> Iterator[str]:
    over = speedups(rows)
    found = defaultdict(list)
    for row in rows:
        if row.impl.startswith("fused") and row.case in over:
            found[row.model, row.impl, row.mode].append(over[row.case])
    for (model, impl, mode), ratios in found.items():
        slower = sum(ratio < 1 for ratio in ratios)
        yield (
            f"{impl} over eager, {model} {mode}: {min(ratios):.2f} to {max(ratios):.2f} times, median "
            f"{statistics.median(ratios):.2f}" + (f"; slower in {slower} of {len(ratios)} cases" if slower else "")
        )


def _jumps(rows: Iterable[Row]) -> Iterator[str]:
    for curve in _curves(row for row in rows if row.memory.peak_mem_mib is not None):
        steps = [
            (b, ((b.memory.peak_mem_mib or 0) - (a.memory.peak_mem_mib or 0)) / (b.batch - a.batch))
            for a, b in itertools.pairwise(curve)
        ]
        for (before, less), (after, more) in itertools.pairwise(steps):
            if less > 0 and more > JUMP * less:
                yield (
                    f"memory jumps between batch {before.batch} and {after.batch}: {_named(after)}: "
                    f"{more:.1f} MiB an image, {less:.1f} before"
                )


def standouts(rows: Sequence[Row]) -> list[str]:
    """Best throughput per model, size and mode; where batches stop to help; wide intervals; what fused gained; where
    memory jumped. Rows that are not ok or not valid are left out; nothing to tell is no line."""
    sound = [row for row in rows if row.status == "ok" and row.health.valid is not False]
    timed = [row for row in sound if row.speed.img_per_s]
    return [*_fastest(timed), *_filled(timed), *_wide(timed), *_gained(timed), *_jumps(sound)]


__all__ = ["standouts"]
