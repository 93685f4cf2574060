"""Samples from what a file says of samples that it does not hold, so that one test judges both. Imports no torch.

The test is of medians, and how far a median strays is told by the quartiles beside it and the number of samples.
Samples are drawn again along those points. Drift, which only raw samples show, is not in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

#: As many as the test takes at most.
MOST = 2000


def from_quartiles(stats: Mapping[str, Any]) -> list[float] | None:
    """`rounds` values whose quartiles are those of pytest-benchmark's statistics, in no order.

    Returns: None where the statistics have no quartiles or only one round.
    """
    points = [stats.get(name) for name in ("min", "q1", "median", "q3", "max")]
    rounds = int(stats.get("rounds") or 0)
    if rounds < 2 or any(point is None for point in points):
        return None
    levels = np.linspace(0.0, 1.0, min(rounds, MOST))
    return _shuffled(np.interp(levels, [0.0, 0.25, 0.5, 0.75, 1.0], np.asarray(points, dtype=np.float64)))


def from_interval(median: float, low: float, high: float, count: int) -> list[float]:
    """`count` values whose median has the 95 % interval [low, high] by order statistics."""
    count = min(count, MOST)
    if count < 2:
        return [median]
    reach = min(0.5, 0.98 / np.sqrt(count))
    levels = np.linspace(0.0, 1.0, count)
    below, above = (median - low) / reach, (high - median) / reach
    away = levels - 0.5
    return _shuffled(median + away * np.where(away < 0, below, above))


def _shuffled(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    return [float(value) for value in np.random.default_rng(0).permutation(values)]


__all__ = ["from_interval", "from_quartiles"]
