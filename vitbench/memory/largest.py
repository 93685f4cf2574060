"""The largest batch that runs, where larger ones may run though smaller ones do not: holes depend on sizes. No torch.

Batches lie in ranges that are the same for every model and card: up to 1,024 each is its own, beyond that a range is a
512th of its first batch wide. The largest batch is the last that runs in the highest range whose first batch runs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cache

from vitbench.memory.setting import LARGEST_BATCH

_WIDTH = 512


def find(could: Callable[[int], bool], runs: Callable[[int], bool]) -> int:
    """The largest batch that `runs`, as defined above; LARGEST_BATCH where that one does, 0 for none.

    Args:
        could: whether a batch can run at all, which is cheap to ask; where one can, all below can.
        runs: whether it does.
    """
    bound = _last(could)
    if bound == LARGEST_BATCH and runs(bound):
        return bound
    above = bound + 1
    for first in reversed(firsts()[: bisect_right(firsts(), bound)]):
        if runs(first):
            return next((batch for batch in range(above - 1, first, -1) if runs(batch)), first)
        above = first
    return 0


@cache
def firsts() -> list[int]:
    """The first batch of each range, in order."""
    found = [1]
    while found[-1] < LARGEST_BATCH:
        found.append(found[-1] + max(1, found[-1] // _WIDTH))
    return found


def _last(could: Callable[[int], bool]) -> int:
    """The largest batch that could run, up to LARGEST_BATCH; 0 for none."""
    low, high = 0, LARGEST_BATCH + 1
    while high - low > 1:
        middle = min((low + high) // 2, 2 * low + 1)
        low, high = (middle, high) if could(middle) else (low, middle)
    return low


__all__ = ["find", "firsts"]
