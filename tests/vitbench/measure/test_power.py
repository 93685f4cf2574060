"""Energy sources: the powercap files as the kernel lays them out, their wrap, and what is missing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from vitbench.measure import device as devices
from vitbench.measure import power

pytestmark = pytest.mark.fast

needs_gpu = pytest.mark.skipif(devices.gpu_count() == 0, reason="no NVIDIA GPU")


def make_zone(root: Path, name: str, energy_uj: int, range_uj: int = 262_143_328_850) -> Path:
    zone = root / name
    zone.mkdir(parents=True)
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return zone


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    first, second = make_zone(tmp_path, "intel-rapl:0", 1_000_000), make_zone(tmp_path, "intel-rapl:1", 5_000_000)
    core = make_zone(tmp_path, "intel-rapl:0:0", 0)
    source, why = power.find("cpu", tmp_path)
    assert why == ""
    assert source is not None
    assert source.joules() == 0
    for zone, energy in ((first, 3_000_000), (second, 6_500_000), (core, 900_000_000)):
        (zone / "energy_uj").write_text(f"{energy}\n")
    assert source.joules() == pytest.approx(3.5)


def test_the_counter_may_wrap(tmp_path: Path) -> None:
    zone = make_zone(tmp_path, "intel-rapl:0", 900, range_uj=999)
    source, _ = power.find("cpu", tmp_path)
    assert source is not None
    (zone / "energy_uj").write_text("100\n")
    assert source.joules() == pytest.approx(200e-6)
    (zone / "energy_uj").write_text("150\n")
    assert source.joules() == pytest.approx(250e-6)


def test_no_zone_is_said(tmp_path: Path) -> None:
    assert power.find("cpu", tmp_path / "none") == (None, f"no package energy zone under {tmp_path / 'none'}")


def test_unreadable_counter_is_said(tmp_path: Path) -> None:
    zone = make_zone(tmp_path, "intel-rapl:0", 1)
    (zone / "energy_uj").unlink()
    (zone / "energy_uj").mkdir()  # reading it fails even for root
    source, why = power.find("cpu", tmp_path)
    assert source is None
    assert "not readable" in why


def test_measured_energy_is_the_counters_over_the_work(tmp_path: Path) -> None:
    """A thread plays the kernel: 10 W. Half of it is called idle."""
    zone = make_zone(tmp_path, "intel-rapl:0", 0)
    stop = threading.Event()

    def burn() -> None:
        start = time.perf_counter()
        while not stop.wait(0.002):
            partial = zone / "partial"
            partial.write_text(f"{int(10e6 * (time.perf_counter() - start))}\n")
            partial.rename(zone / "energy_uj")

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        source, _ = power.find("cpu", tmp_path)
        assert source is not None
        energy = power.measure(lambda: time.sleep(0.01), source, lambda: None, min_seconds=0.5)
        idle = power.idle_watts(source, 0.2)
    finally:
        stop.set()
        thread.join()
    assert energy.watts == pytest.approx(10, rel=0.15)
    assert idle == pytest.approx(10, rel=0.3)
    assert energy.calls >= 20
    assert energy.per_call() == pytest.approx(energy.joules / energy.calls)
    assert energy.per_call(energy.watts) == pytest.approx(0, abs=1e-9)
    assert energy.ratio is None, "the counter is the only sensor"


@needs_gpu
def test_nvml_counter_advances() -> None:
    source, why = power.find("cuda")
    assert source is not None, why
    before = source.joules()
    time.sleep(0.5)
    assert source.joules() > before
    assert (source.watts() or 0) > 0
