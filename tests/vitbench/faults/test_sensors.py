"""Energy counters that fail or count rubbish: what else was measured stands, and rows say why energy is not there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.vitbench.faults.problems import CASES
from vitbench.bench.messages import Result
from vitbench.bench.options import SweepOptions
from vitbench.bench.worker import Worker
from vitbench.measure import device as devices
from vitbench.measure import power


class NVMLError(Exception):
    """As pynvml's."""


class Library:
    """What `power` calls of pynvml: a counter in mJ whose nth answer is `counts(n)`, and a sensor of 100 W in mW."""

    NVMLError = NVMLError

    def __init__(self, counts: Callable[[int], int]) -> None:
        self.counts, self.asked = counts, 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        self.asked += 1
        return self.counts(self.asked)

    def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
        return 100_000


def lost_after(answers: int) -> Callable[[int], int]:
    def counts(asked: int) -> int:
        if asked > answers:
            raise NVMLError("GPU is lost")
        return 1000 * asked

    return counts


def row(counts: Callable[[int], int], monkeypatch: pytest.MonkeyPatch) -> Result:
    """A case measured with this counter."""
    library = Library(counts)
    monkeypatch.setattr(devices, "nvml", lambda: library)
    monkeypatch.setattr(devices, "nvml_handle", lambda device: None)
    find = power.find
    monkeypatch.setattr(power, "find", lambda device: find("cuda"))
    monkeypatch.setattr(power, "measure", functools.partial(power.measure, min_seconds=0.05))
    monkeypatch.setattr(power, "idle_watts", functools.partial(power.idle_watts, seconds=0.01))
    told: list[Any] = []
    Worker(SweepOptions(min_time=0.01, max_time=0.02, passes=("latency", "energy")), told.append).run_group(CASES[:1])
    (result,) = (one for one in told if isinstance(one, Result))
    return result


@pytest.mark.parametrize(("counts", "says"), [
    pytest.param(lost_after(4), "NVML: GPU is lost", marks=pytest.mark.fault(
        "NVML fails mid-run", "a stand-in for NVML whose counter raises after a while",
        "the row's times, without energy")),
    pytest.param(lost_after(2), "the counter failed while nothing ran", marks=pytest.mark.fault(
        "NVML fails mid-run", "the same while idle power is measured", "the row's times, without energy")),
    pytest.param(lambda asked: 1000 * (asked if asked < 5 else asked - 5), "the counter went back from 4 to 0 J",
                 marks=pytest.mark.fault("a counter that resets", "a stand-in for NVML whose counter begins anew",
                                         "the row's times, without energy")),
    pytest.param(lambda asked: 1000 * min(asked, 3), "the counter stood still", marks=pytest.mark.fault(
        "a counter that resets", "a stand-in for NVML whose counter stands still", "the row's times, without energy")),
])  # fmt: skip
def test_a_counter_that_fails_costs_the_energy_alone(
    counts: Callable[[int], int], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = row(counts, monkeypatch)
    found = result.found
    assert found.status == "ok"
    assert f"energy is not measured: {says}" in found.reason
    assert found.speed.img_per_s is not None
    assert len(result.samples_ms) == found.speed.samples
    assert [found.energy.energy_j_per_img, found.energy.energy_net_j_per_img, found.energy.avg_power_w] == [None] * 3


def test_a_counter_that_works_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = row(lambda asked: 1000 * asked, monkeypatch).found
    assert (found.status, found.reason, found.energy.energy_source) == ("ok", "", "nvml")
    assert found.energy.energy_j_per_img is not None
    assert found.energy.energy_j_per_img > 0


def test_no_counter_at_the_start_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(lost_after(0))
    monkeypatch.setattr(devices, "nvml", lambda: library)
    monkeypatch.setattr(devices, "nvml_handle", lambda device: None)
    assert power.find("cuda") == (None, "this GPU has no energy counter (NVML: GPU is lost)")
