"""The largest batch: that it is the one that is defined, also where batches below it do not run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from vitbench.memory import find as finding
from vitbench.memory import largest
from vitbench.memory.plan import targets
from vitbench.memory.setting import LARGEST_BATCH, Setting


def at_most(bound: int) -> Callable[[int], bool]:
    return lambda batch: batch <= bound


def test_ranges_are_single_batches_up_to_1024_and_narrow_beyond() -> None:
    firsts = largest.firsts()
    assert firsts[:1024] == list(range(1, 1025))
    assert firsts[1024:1027] == [1026, 1028, 1030]
    assert firsts[-1] >= LARGEST_BATCH
    assert all(b - a <= max(1, a / 512) for a, b in pairwise(firsts))


@pytest.mark.parametrize("bound", [0, 1, 2, 3, 511, 1024, 1025, 1026, 9111, 9112, 123_457, LARGEST_BATCH - 1])
@pytest.mark.parametrize("more", [1.0, 1.1])
def test_where_all_up_to_one_run_that_is_the_largest(bound: int, more: float) -> None:
    assert largest.find(at_most(int(more * bound)), at_most(bound)) == bound


def test_none_and_more_than_are_tried() -> None:
    assert largest.find(at_most(7), at_most(0)) == 0
    assert largest.find(at_most(2 * LARGEST_BATCH), at_most(2 * LARGEST_BATCH)) == LARGEST_BATCH


@pytest.mark.parametrize("bound", [300, 311, 400, 512, 700])
def test_batches_that_do_not_run_below_others_that_do_change_nothing(bound: int) -> None:
    runs = {*range(1, 200), 250, 251, 299, 300}
    assert largest.find(at_most(bound), runs.__contains__) == 300


@pytest.mark.parametrize("bound", [2068, 2072, 2500])
def test_it_is_the_last_of_the_highest_range_whose_first_batch_runs(bound: int) -> None:
    firsts = largest.firsts()
    at = firsts.index(2061)
    assert firsts[at : at + 3] == [2061, 2065, 2069]
    assert largest.find(at_most(bound), {2061, 2063, 2066, 2067, 2070}.__contains__) == 2063


def test_holes_of_a_real_model_are_not_taken_for_its_end() -> None:
    setting = Setting("cmt_s", (448, 448), "infer", "amp", "eager", optimizer="none")
    limit = targets("A100 80GB", None)[0].limit("infer")
    traces = finding.Traces(setting)
    firsts = [batch for batch in largest.firsts() if 1700 < batch < 2200]
    runs = {batch: finding._fits(traces.general, batch, limit) for batch in firsts}
    highest = max(batch for batch, does in runs.items() if does)
    after = firsts[firsts.index(highest) + 1]
    found = finding._largest(traces, limit)
    assert found == max(batch for batch in range(highest, after) if finding._fits(traces.general, batch, limit))
    assert not all(does for batch, does in runs.items() if batch < found)  # bisection would end at one of those
