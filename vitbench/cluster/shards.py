"""Cases to shards of about equal predicted time. Imports no torch."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from vitbench.bench.plan import Case, group

#: How far the longest shard may be above the least that is possible, for models to stay whole.
SLACK = 0.02

#: Cases that stay together, and their seconds.
Part = tuple[float, list[Case]]


def divide(cases: Sequence[Case], count: int, seconds: Callable[[Case], float]) -> list[list[Case]]:
    """At most `count` shards, the longest first, each in the order of `cases`.

    Cases that differ only in implementation stay together, as they are timed in turns. A model stays whole where that
    costs less than SLACK, else it is cut in halves, quarters and so on: its cases share what is built and compiled.
    """
    groups = [(sum(map(seconds, members)), members) for members in group(cases)]
    count = min(count, len(groups))
    bound = least(groups, count)
    limit = bound
    while True:
        parts = _joined(groups, limit)
        loads, spread = _longest_first(parts, count)
        if max(loads) <= (1 + SLACK) * bound or len(parts) == len(groups):
            break
        limit /= 2
    place = {case: number for number, case in enumerate(cases)}
    by_load = sorted(range(count), key=lambda shard: -loads[shard])
    return [sorted((case for _, part in spread[shard] for case in part), key=place.__getitem__) for shard in by_load]


def least(groups: Sequence[Part], count: int) -> float:
    """Seconds below which no division into `count` shards gets."""
    return max(sum(cost for cost, _ in groups) / count, max(cost for cost, _ in groups))


def _joined(groups: Sequence[Part], limit: float) -> list[Part]:
    """Neighbours of one model joined to parts of at most `limit` seconds, a group that is longer alone."""
    parts: list[Part] = []
    for cost, members in groups:
        if parts and parts[-1][1][0].model == members[0].model and parts[-1][0] + cost <= limit:
            before, joined = parts[-1]
            joined += members
            parts[-1] = (before + cost, joined)
        else:
            parts.append((cost, list(members)))
    return parts


def _longest_first(parts: Sequence[Part], count: int) -> tuple[list[float], list[list[Part]]]:
    """Each part, the longest first, to the shard that has least; the loads and the parts of every shard."""
    shards: list[list[Part]] = [[] for _ in range(count)]
    heap = [(0.0, shard) for shard in range(count)]
    for part in sorted(parts, key=lambda part: -part[0]):
        load, shard = heapq.heappop(heap)
        shards[shard].append(part)
        heapq.heappush(heap, (load + part[0], shard))
    return [load for load, _ in sorted(heap, key=lambda one: one[1])], shards


__all__ = ["SLACK", "divide", "least"]
