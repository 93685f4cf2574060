"""Does `vitbench compare` tell the truth? Simulated pairs whose true ratio is known. Run by `make bench-compare`.

The noise is what timings show: neighbouring samples correlate, a few per cent of them are far too long (another
process, an interrupt), the clock drifts while a case is measured, and each session stands a little higher or lower
than the last. How many samples a case gets is decided by the harness's own stop rule with its default limits.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.signal import lfilter

from vitbench.gate.compare import THRESHOLD, judge
from vitbench.gate.measurements import TIME
from vitbench.measure.latency import MAX_SECONDS, StopRule

PAIRS = 1000
SLOW_DOWN = 1.07
MIN_SECONDS = 0.5  # the default of `vitbench bench`
SESSION = 0.005  # standard deviation of a session's level
DRIFT = 0.015  # most a case drifts from its first sample to its last
TAIL_SHARE, TAIL_SHAPE = 0.04, 2.5  # share of samples hit, and the Pareto exponent of by how much
CORRELATION = 0.5  # of neighbouring samples


def noise(
    random: np.random.Generator, count: int, spread: float, tail_share: float = TAIL_SHARE
) -> NDArray[np.float64]:
    """Factors on the true time: correlated noise of relative size `spread`, a drift, and a heavy tail."""
    steps = random.standard_normal(count) * math.sqrt(1 - CORRELATION**2)
    correlated = lfilter([1.0], [1.0, -CORRELATION], steps)
    drift = random.uniform(-DRIFT, DRIFT) * np.linspace(0, 1, count)
    wander = np.cumsum(random.standard_normal(count)) * DRIFT / 4 / math.sqrt(count)
    tail = np.where(random.random(count) < tail_share, 0.05 * (1 + random.pareto(TAIL_SHAPE, count)), 0.0)
    return np.exp(spread * correlated + drift + wander) * (1 + tail)


def session(random: np.random.Generator, true_ms: float, spread: float) -> list[float]:
    """The samples that the harness would take of a case, stop rule included."""
    most = min(4000, max(10, math.ceil(MAX_SECONDS * 1e3 / true_ms)))
    samples = (true_ms * math.exp(SESSION * random.standard_normal()) * noise(random, most, spread)).tolist()
    rule = StopRule(MIN_SECONDS)
    count = 10
    while count < most and rule.update(samples[:count], sum(samples[:count]) / 1e3) is None:
        count += max(1, count // 50)
    return samples[:count]


QUIET, LOUD = (0.003, 0.02), (0.05, 0.12)  # relative noise of a GPU of one's own, and of shared CPU cores


def verdicts(
    true_ratio: float, pairs: int, seed: int, spreads: tuple[float, float] = QUIET
) -> tuple[Counter[str], list[int]]:
    """Verdicts on pairs whose second session's true time is `true_ratio` times the first's; and sample counts."""
    random = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    counts = []
    for _ in range(pairs):
        true_ms = float(np.exp(random.uniform(math.log(1.0), math.log(100.0))))
        spread = random.uniform(*spreads)
        base, new = session(random, true_ms, spread), session(random, true_ms * true_ratio, spread)
        found[judge("case", TIME, base, new, THRESHOLD).verdict] += 1
        counts += [len(base), len(new)]
    return found, counts


@pytest.mark.parametrize(
    ("true_ratio", "spreads", "seed"),
    [(1.0, QUIET, 1), (SLOW_DOWN, QUIET, 2), (1 / SLOW_DOWN, QUIET, 3), (1.0, LOUD, 4)],
    ids=["same", "7 % slower", "7 % faster", "same on a loud machine"],
)
def test_pairs(benchmark: BenchmarkFixture, true_ratio: float, spreads: tuple[float, float], seed: int) -> None:
    """False alarms at most 1 %, on a loud machine too; a 7 % slow-down or gain caught at least 95 % of the time."""
    found, counts = benchmark.pedantic(verdicts, (true_ratio, PAIRS, seed, spreads), rounds=1, iterations=1)
    benchmark.extra_info.update(
        {"true ratio": round(true_ratio, 3), "pairs": PAIRS, "median samples": int(np.median(counts))}
        | {verdict: found[verdict] for verdict in ("slower", "unsure", "faster", "same")}
    )
    if true_ratio == 1.0:
        assert found["slower"] + found["faster"] <= 0.01 * PAIRS
    else:
        assert found["slower" if true_ratio > 1 else "faster"] >= 0.95 * PAIRS
