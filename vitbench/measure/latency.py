"""How long one step takes: warm-up by time, interleaved samples, a stop rule that says why it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

Step = Callable[[], object]

MIN_SAMPLES = 10
MAX_SECONDS = 15.0
WARMUP_CALLS = 3
CI_TARGET = 0.01


@dataclass(frozen=True)
class Latency:
    """Samples of one step in ms and what they say; `stop_reason` is converged, noise or cap."""

    samples_ms: list[float] = field(repr=False)
    stop_reason: str

    @property
    def p50(self) -> float:
        return quantile(self.samples_ms, 0.5)

    @property
    def p95(self) -> float:
        return quantile(self.samples_ms, 0.95)

    @property
    def interval(self) -> tuple[float, float]:
        return median_interval(self.samples_ms)


def quantile(samples: Sequence[float], q: float) -> float:
    """The q-quantile, linear between order statistics."""
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median from order statistics: no assumption about the noise's shape.

    Ranks n/2 -+ 0.98 sqrt(n), the normal approximation of the binomial, clipped to the samples.
    """
    ordered = sorted(samples)
    n = len(ordered)
    reach = 0.98 * math.sqrt(n)
    low = max(0, math.floor(n / 2 - reach) - 1)
    high = min(n - 1, math.ceil(n / 2 + reach))
    return ordered[low], ordered[high]


class StopRule:
    """Decides after each sample whether one step has been measured well enough.

    Stops when there are at least MIN_SAMPLES, `min_seconds` of measured time and an interval of the
    median within CI_TARGET of it ("converged"); or when twice as many samples no longer narrowed the
    interval as independent noise would ("noise"); or at `max_seconds` ("cap").
    """

    def __init__(self, min_seconds: float, max_seconds: float = MAX_SECONDS) -> None:
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.reason: str | None = None
        self._next_check = MIN_SAMPLES
        self._widths: list[float] = []

    def update(self, samples_ms: Sequence[float], elapsed: float) -> str | None:
        """The reason to stop, or None; `elapsed` is wall time in s since this step's first sample."""
        if self.reason is not None:
            return self.reason
        measured = sum(samples_ms) / 1e3
        if len(samples_ms) >= MIN_SAMPLES and measured >= self.min_seconds:
            low, high = median_interval(samples_ms)
            median = quantile(samples_ms, 0.5)
            width = max(high - median, median - low) / median
            if width <= CI_TARGET:
                self.reason = "converged"
            elif len(samples_ms) >= self._next_check:
                self._widths.append(width)
                self._next_check = 2 * len(samples_ms)
                # Independent noise narrows by 1/sqrt(2) at each doubling.
                if len(self._widths) >= 3 and self._widths[-1] > 0.9 * self._widths[-3]:
                    self.reason = "noise"
        if self.reason is None and elapsed >= self.max_seconds:
            self.reason = "cap"
        return self.reason


class Clock:
    """Times single calls: device events on a GPU, perf_counter elsewhere.

    `before` is called ahead of each, outside of its time. On a GPU it is not waited for, so that the step's launches
    are made while it runs.
    """

    def __init__(self, device: torch.device, before: Callable[[], object] | None = None) -> None:
        self.cuda = device.type == "cuda"
        self.device = device
        self.before = before or (lambda: None)

    def time_ms(self, step: Step) -> float:
        if not self.cuda:
            self.before()
            start = time.perf_counter()
            step()
            return (time.perf_counter() - start) * 1e3
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        self.before()
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize(self.device)
        return float(begin.elapsed_time(end))


def warm_up(step: Step, device: torch.device, seconds: float, called: int = 0) -> None:
    """`seconds` of calls, at least one, so many that with those that were made before it had WARMUP_CALLS."""
    clock = Clock(device)
    start = time.perf_counter()
    calls = 0
    while calls < max(1, WARMUP_CALLS - called) or time.perf_counter() - start < seconds:
        clock.time_ms(step)
        calls += 1


def measure(
    steps: Sequence[Step],
    device: torch.device,
    min_seconds: float = 0.5,
    max_seconds: float = MAX_SECONDS,
    accept: Callable[[], bool] = lambda: True,
    before: Callable[[], object] | None = None,
    called: int = 0,
) -> list[Latency]:
    """Times several steps against each other in rounds A B, B A, A B, ... until each has its stop reason.

    Interleaving puts a drift of the machine into every step alike. All steps keep taking part until
    the last one is done, so that sample i of each comes from the same round.

    Args:
        accept: asked after every round; a round answered False (a throttled one) is discarded.
        before: called ahead of every sample, outside of its time, such as a flush of the L2 cache.
        called: how often each step has been called before, to verify it say: those calls warm it up too.

    Returns: one Latency a step, in order.
    """
    clock = Clock(device, before)
    for step in steps:
        warm_up(step, device, min(0.2, min_seconds), called)
    samples: list[list[float]] = [[] for _ in steps]
    rules = [StopRule(min_seconds, max_seconds * len(steps)) for _ in steps]
    start = time.perf_counter()
    order = list(range(len(steps)))
    while any(rule.reason is None for rule in rules):
        taken = {i: clock.time_ms(steps[i]) for i in order}
        order.reverse()
        elapsed = time.perf_counter() - start
        if not accept() and elapsed < max_seconds * len(steps):
            continue
        for i, rule in enumerate(rules):
            samples[i].append(taken[i])
            rule.update(samples[i], elapsed)
    return [Latency(own, rule.reason or "cap") for own, rule in zip(samples, rules, strict=True)]
