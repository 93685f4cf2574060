"""Published times beside modelled ones: rows, their CSV and statistics."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitkernels import Launch

from vitbench.audit.model.chips import Chip, chip_named
from vitbench.audit.records import Row
from vitbench.audit.run import audit_launches
from vitbench.audit.truth.launches import alternatives
from vitbench.audit.truth.points import DO_BENCH, LEFT_OUT, TEST, Point
from vitbench.audit.validate import Pair, rank_correlation
from vitbench.errors import InputError
from vitbench.results.table import Table


@dataclass(frozen=True)
class Time:
    """One published time and the model's.

    `launch_us` is added to `modelled_us` where the time was taken by do_bench; `ratio` is the sum over `measured_us`.
    The interval is that of the simulation; `occupancy` and `bound_by` are of the longest kernel, `fastest` names what
    was taken of several.
    """

    kernel: str
    shape: str
    card: str
    source: str
    use: str
    bound: str
    measured_us: float
    launch_us: float
    modelled_us: float
    modelled_low_us: float
    modelled_high_us: float
    ratio: float
    occupancy: float
    bound_by: str
    floor_us: float
    overlapped_us: float
    fastest: str

    @property
    def error(self) -> float:
        """The log of the ratio."""
        return math.log(self.ratio)


TABLE = Table(Time, "a file of published and modelled kernel times", number=lambda value: f"{value:.5g}")


def model(
    points: Sequence[Point],
    processes: int | None = None,
    cache: Path | None = None,
    done: Callable[[int, int], None] | None = None,
) -> list[Time]:
    """The times of all points that are not left out.

    Raises: InputError when a launch cannot be audited, or liger-kernel is missing.
    """
    chosen = [(point, alternatives(point)) for point in points if point.use != LEFT_OUT]
    by_card: defaultdict[str, list[Launch]] = defaultdict(list)
    for point, tried in chosen:
        known = by_card[point.card]
        known += [launch for launches in tried for launch in launches if launch.id not in {k.id for k in known}]
    rows: dict[tuple[str, str], Row] = {}
    for card, launches in by_card.items():
        chip = chip_named(card)
        for item in audit_launches(
            [(launch, chip.arch) for launch in launches], processes, cache, done=done, card=card
        ):
            if item.row.status != "ok" and len(launches) == 1:
                raise InputError(f"{item.row.launch_id} cannot be modelled on the {card}: {item.row.reason}")
            rows[card, item.launch.id] = item.row
    return [_time(point, [[rows[point.card, x.id] for x in tried] for tried in each]) for point, each in chosen]


def _time(point: Point, tried: list[list[Row]]) -> Time:
    possible = [rows for rows in tried if all(row.status == "ok" for row in rows)]
    if not possible:
        row = tried[0][0]
        raise InputError(f"{row.launch_id} cannot be modelled on the {point.card}: {row.reason}")
    best = min(possible, key=lambda rows: sum(row.modelled_us for row in rows))
    longest = max(best, key=lambda row: row.modelled_us)
    chip: Chip = chip_named(point.card)
    extra = point.extra_bytes / chip.dram_bytes_per_us
    launch_us = chip.launch_us if point.method == DO_BENCH else 0.0
    modelled = sum(row.modelled_us for row in best) + extra
    return Time(
        kernel=point.kernel, shape=point.shape, card=point.card, source=point.source, use=point.use, bound=point.bound,
        measured_us=point.measured_us, launch_us=launch_us, modelled_us=modelled,
        modelled_low_us=sum(row.modelled_low_us or 0.0 for row in best) + extra,
        modelled_high_us=sum(row.modelled_high_us or 0.0 for row in best) + extra,
        ratio=(modelled + launch_us) / point.measured_us, occupancy=longest.occupancy, bound_by=longest.bound_by,
        floor_us=sum(row.floor_us for row in best) + extra,
        overlapped_us=sum(row.overlapped_us for row in best) + extra,
        fastest=longest.case if len(tried) > 1 else "",
    )  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """Of the points that nothing was fitted to: how many, mean of the absolute log error, and Spearman's rank
    correlation of measured and modelled time, each over the floor."""

    points: int
    error: float
    correlation: float


def judge(times: Sequence[Time], simulated: bool = True) -> Statistics:
    """Statistics of the test points among these; with overlapped times in the place of simulated ones where told.

    Raises: ValueError for fewer than three.
    """
    tested = [time for time in times if time.use == TEST]
    if len(tested) < 3:
        raise ValueError(f"statistics need three points that nothing was fitted to, got {len(tested)}")
    modelled = [(time.modelled_us if simulated else time.overlapped_us) + time.launch_us for time in tested]
    errors = [abs(math.log(us / time.measured_us)) for us, time in zip(modelled, tested, strict=True)]
    pairs = [
        Pair(time.shape, time.measured_us / time.floor_us, us / time.floor_us)
        for us, time in zip(modelled, tested, strict=True)
    ]
    return Statistics(len(tested), statistics.fmean(errors), rank_correlation(pairs) or 0.0)


def bounded_by_memory(times: Sequence[Time]) -> list[Time]:
    return [time for time in times if time.bound == "memory"]


def bounded_by_work(times: Sequence[Time]) -> list[Time]:
    """By arithmetic or by latency."""
    return [time for time in times if time.bound != "memory"]


def summary(times: Sequence[Time]) -> str:
    """Statistics of the simulation and of overlapped times, by what bounds the kernels."""
    groups = {"all": list(times), "memory": bounded_by_memory(times), "compute or latency": bounded_by_work(times)}
    lines = [f"{'':18} {'':>6} {'simulated':>15} {'overlapped':>15}"]
    lines.append(f"{'bound by':18} {'points':>6} {'error':>8} {'rank':>6} {'error':>8} {'rank':>6}")
    for name, group in groups.items():
        new, old = judge(group), judge(group, simulated=False)
        lines.append(
            f"{name:18} {new.points:6} {new.error:8.1%} {new.correlation:6.3f} {old.error:8.1%} {old.correlation:6.3f}"
        )
    lines.append("error: mean of |ln (modelled + launch) / measured|; rank: Spearman's, of times over their floors")
    return "\n".join(lines)
