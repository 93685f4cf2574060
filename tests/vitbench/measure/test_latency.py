"""The stop rule, the statistics it rests on, and the interleaving."""

from __future__ import annotations

import random
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitbench.measure import latency
from vitbench.measure.latency import StopRule, median_interval, quantile

CPU = torch.device("cpu")


@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=200))
def test_quantiles_agree_with_the_library(samples: list[float]) -> None:
    assert quantile(samples, 0.5) == pytest.approx(statistics.median(samples))
    assert quantile(samples, 0.0) == min(samples)
    assert quantile(samples, 1.0) == max(samples)


def test_interval_covers_the_true_median_as_often_as_it_says() -> None:
    """Log-normal samples have median 1; 95 % intervals from 40 of them must hold it 93-99 % of the time."""
    rng = random.Random(1)
    hits = 0
    for _ in range(1000):
        low, high = median_interval([rng.lognormvariate(0, 0.3) for _ in range(40)])
        hits += low <= 1.0 <= high
    assert 930 <= hits <= 990


def feed(rule: StopRule, draw, seconds_each: float = 0.01, limit: int = 100_000) -> int:  # type: ignore[no-untyped-def]
    samples: list[float] = []
    for n in range(1, limit):
        samples.append(draw(n))
        if rule.update(samples, n * seconds_each) is not None:
            return n
    raise AssertionError("never stopped")


def test_quiet_samples_converge_after_the_least_time() -> None:
    rule = StopRule(min_seconds=0.5)
    assert feed(rule, lambda n: 10.0) == 50
    assert rule.reason == "converged"


def test_quick_steps_still_give_ten_samples() -> None:
    rule = StopRule(min_seconds=0.001)
    assert feed(rule, lambda n: 5.0) == latency.MIN_SAMPLES


def test_independent_noise_is_averaged_down() -> None:
    rng = random.Random(2)
    rule = StopRule(min_seconds=0.1, max_seconds=1e9)
    n = feed(rule, lambda _: 10 * rng.lognormvariate(0, 0.05))
    assert rule.reason == "converged"
    assert n > 50


def test_noise_that_does_not_shrink_stops() -> None:
    """Runs of slow and fast stretches, each longer than the last: more samples do not narrow the interval."""
    rule = StopRule(min_seconds=0.1, max_seconds=1e9)
    feed(rule, lambda n: 10.0 if n.bit_length() % 2 else 14.0)
    assert rule.reason == "noise"


def test_slow_steps_stop_at_the_cap() -> None:
    rule = StopRule(min_seconds=0.5, max_seconds=15)
    assert feed(rule, lambda n: 5000.0, seconds_each=5.0) == 3
    assert rule.reason == "cap"


def test_steps_take_turns_and_every_round_has_all() -> None:
    calls: list[str] = []
    steps = [lambda: calls.append("a"), lambda: calls.append("b"), lambda: calls.append("c")]
    timings = latency.measure(steps, CPU, min_seconds=0.0001, max_seconds=0.05)
    counts = {len(timing.samples_ms) for timing in timings}
    assert len(counts) == 1, "samples are paired by round"
    timed = "".join(calls)[-3 * counts.pop() :]
    rounds = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert rounds[:4] == ["abc", "cba", "abc", "cba"]


def test_refused_rounds_are_discarded() -> None:
    answers: list[bool] = []

    def accept() -> bool:
        answers.append(len(answers) % 3 == 2)
        return answers[-1]

    (timing,) = latency.measure([lambda: None], CPU, 1e-6, 0.2, accept)
    assert len(timing.samples_ms) == sum(answers) >= latency.MIN_SAMPLES
    assert len(answers) > 2 * sum(answers)


def test_it_times_what_it_is_given() -> None:
    import time

    (timing,) = latency.measure([lambda: time.sleep(0.01)], CPU, min_seconds=0.1, max_seconds=2)
    assert 10.0 <= timing.p50 < 20.0
    low, high = timing.interval
    assert low <= timing.p50 <= high <= max(timing.samples_ms)


@pytest.mark.parametrize(("called", "more"), [(0, 3), (1, 2), (2, 1), (3, 1), (9, 1)])
def test_calls_that_were_made_before_warm_up_too(called: int, more: int) -> None:
    calls: list[int] = []
    latency.warm_up(lambda: calls.append(1), CPU, 0.0, called)
    assert len(calls) == more
