"""Cases are divided evenly by what they are predicted to take, and what belongs together stays together."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitbench.bench.plan import Case, group
from vitbench.cluster.shards import SLACK, divide, least

pytestmark = pytest.mark.fast


def case(model: int, batch: int, impl: str = "eager") -> Case:
    return Case(f"m{model}", impl, "infer", "fp32", "nchw", (32, 32), batch, "cpu")


def loads(shards: list[list[Case]], seconds: dict[Case, float]) -> list[float]:
    return [sum(map(seconds.__getitem__, shard)) for shard in shards]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.01, 100)), min_size=1, max_size=60), st.integers(1, 12))
def test_every_case_is_in_one_shard_and_none_is_far_above_the_least(drawn: list[tuple[int, float]], count: int) -> None:
    drawn.sort()
    cases = [case(model, batch) for batch, (model, _) in enumerate(drawn, start=1)]
    seconds = dict(zip(cases, (cost for _, cost in drawn), strict=True))
    shards = divide(cases, count, seconds.__getitem__)
    assert sorted((c for shard in shards for c in shard), key=cases.index) == cases
    assert len(shards) == min(count, len(cases))
    assert all(shards), "a job that has nothing to do"
    assert all(shard == sorted(shard, key=cases.index) for shard in shards)
    found = loads(shards, seconds)
    assert found == sorted(found, reverse=True)
    bound = least([(seconds[one], [one]) for one in cases], len(shards))
    assert max(found) <= 2 * bound, "Graham's bound for any order"
    if len(cases) > 8 * count and max(seconds.values()) < sum(seconds.values()) / count / 20:
        assert max(found) <= 1.06 * bound


def test_implementations_of_one_case_are_never_parted() -> None:
    cases = [case(0, batch, impl) for batch in range(1, 8) for impl in ("eager", "sdpa", "compile")]
    shards = divide(cases, 3, lambda one: float(one.batch))
    assert sorted(len(members) for shard in shards for members in group(shard)) == [3] * 7


def test_models_stay_whole_where_they_are_small() -> None:
    cases = [case(model, batch) for model in range(100) for batch in range(1, 3)]
    shards = divide(cases, 4, lambda one: 1.0)
    assert [len({one.model for one in shard}) for shard in shards] == [25] * 4


def test_a_shard_is_not_of_one_model() -> None:
    """It would be as wrong as what is predicted of that model."""
    cases = [case(model, batch) for model in range(4) for batch in range(1, 101)]
    shards = divide(cases, 4, lambda one: 1.0)
    assert all(len({one.model for one in shard}) >= 3 for shard in shards)


def test_a_model_is_parted_where_the_shards_would_else_be_uneven() -> None:
    cases = [case(model, batch) for model in range(3) for batch in range(1, 101)]
    seconds = {one: random.Random(one.id).uniform(1, 2) for one in cases}
    found = loads(divide(cases, 4, seconds.__getitem__), seconds)
    assert max(found) <= (1 + SLACK) * sum(seconds.values()) / 4
