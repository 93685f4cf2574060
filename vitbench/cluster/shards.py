"""Cases to shards of about equal predicted time. Imports no torch."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from vitbench.bench import telling
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case, group

#: How far the longest shard may be above the least that is possible, for more of a model to stay together.
SLACK = 0.02
#: Parts that a shard has at least: of one model alone, it would be as wrong as that model's prediction.
PARTS = 16

#: Cases that stay together, and their seconds.
Part = tuple[float, list[Case]]


def divide(cases: Sequence[Case], count: int, seconds: Callable[[Case], float]) -> list[list[Case]]:
    """`count` shards, fewer only where there are fewer cases, the longest first, each in the order of `cases`.

    Cases that differ only in implementation stay together, as they are timed in turns. So do neighbours of one model,
    which share what is built, up to a PARTS-th of a shard, and less where shards would else be uneven.
    """
    groups = [(sum(map(seconds, members)), members) for members in group(cases)]
    count = min(count, len(groups))
    bound = least(groups, count)
    limit = sum(cost for cost, _ in groups) / count / PARTS
    while True:
        parts = _joined(groups, limit)
        loads, spread = _longest_first(parts, count)
        even = len(parts) >= count and max(loads) <= (1 + SLACK) * bound
        if even or len(parts) == len(groups):
            break
        limit /= 2
    place = {case: number for number, case in enumerate(cases)}
    by_load = sorted(range(count), key=lambda shard: -loads[shard])
    return [sorted((case for _, part in spread[shard] for case in part), key=place.__getitem__) for shard in by_load]


def seconds(options: SweepOptions) -> Callable[[Case], float]:
    """What a case is predicted to take, which is not more than it may."""
    return lambda case: min(telling.seconds(case, options), options.time_limit)


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


__all__ = ["PARTS", "SLACK", "divide", "least", "seconds"]
