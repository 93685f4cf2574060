"""Energy of repeated work: one interface, two sources (NVML's counter, the kernel's powercap files).

Imports no torch: the caller hands in a step and a way to wait for the device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vitbench.measure import device as devices

POWERCAP = Path("/sys/class/powercap")
#: NVML's counter ticks about every 100 ms: 5 s keeps that below 2 %.
MIN_SECONDS = 5.0
IDLE_SECONDS = 2.0


class Unreadable(Exception):
    """The counter failed, or what it says cannot be energy; the message says which."""


class EnergySource(Protocol):
    """A cumulative energy counter, and a power sensor where there is one besides."""

    name: str

    def joules(self) -> float:
        """Energy in J since some fixed moment. Raises: Unreadable."""
        ...

    def watts(self) -> float | None:
        """Power in W from a sensor that is not the counter; None where there is none."""
        ...


class NvmlSource:
    """One NVIDIA GPU, Volta or later."""

    name = "nvml"

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    def joules(self) -> float:
        try:
            return float(self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._library.NVMLError as error:
            raise Unreadable(f"NVML: {error}") from error

    def watts(self) -> float | None:
        try:
            return float(self._library.nvmlDeviceGetPowerUsage(self._handle)) / 1e3
        except self._library.NVMLError:
            return None


class PowercapSource:
    """All CPU packages, through the files energy_uj, which wrap at max_energy_range_uj."""

    name = "powercap"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        self._last = [self._read(zone) for zone in zones]
        self._total_uj = 0

    @staticmethod
    def _read(zone: Path) -> int:
        return int((zone / "energy_uj").read_text())

    def joules(self) -> float:
        for i, zone in enumerate(self._zones):
            try:
                now = self._read(zone)
            except (OSError, ValueError) as error:
                raise Unreadable(f"{zone / 'energy_uj'}: {error}") from error
            self._total_uj += (now - self._last[i]) % (self._ranges[i] + 1)
            self._last[i] = now
        return self._total_uj / 1e6

    def watts(self) -> float | None:
        return None


def _package_zones(root: Path) -> list[Path]:
    """The zones of whole packages: their parts (cores, memory) are already within them."""
    zones = sorted(root.glob("*-rapl:*")) if root.is_dir() else []
    return [zone for zone in zones if zone.name.count(":") == 1 and (zone / "energy_uj").exists()]


def find(device: str, root: Path = POWERCAP) -> tuple[EnergySource | None, str]:
    """The energy source of a device and, when there is none, why.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        root: the powercap folder.
    """
    if device != "cpu":
        library = devices.nvml()
        if library is None:
            return None, "no NVIDIA driver"
        try:
            source = NvmlSource(library, devices.nvml_handle(device))
            source.joules()
        except (library.NVMLError, Unreadable) as error:
            return None, f"this GPU has no energy counter ({error})"
        return source, ""
    zones = _package_zones(root)
    if not zones:
        return None, f"no package energy zone under {root}"
    try:
        return PowercapSource(zones), ""
    except OSError as error:
        return None, f"{error.filename} is not readable ({error.strerror}); reading it needs root"


@dataclass(frozen=True)
class Energy:
    """What repeated calls of a step cost: gross energy, time and count; `ratio` is sensor over counter."""

    joules: float
    seconds: float
    calls: int
    ratio: float | None

    @property
    def watts(self) -> float:
        return self.joules / self.seconds

    def per_call(self, idle_watts: float = 0.0) -> float:
        """Energy in J of one call, net of `idle_watts` drawn during it."""
        return (self.joules - idle_watts * self.seconds) / self.calls


class _Poll:
    """Integrates a power sensor over time in a thread, as a cross-check of the counter."""

    def __init__(self, source: EnergySource, period: float = 0.05) -> None:
        self._source = source
        self._period = period
        self._stop = threading.Event()
        self._readings: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            watts = self._source.watts()
            if watts is None:
                return
            self._readings.append((time.perf_counter(), watts))
            self._stop.wait(self._period)

    def __enter__(self) -> _Poll:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def mean_watts(self) -> float | None:
        """The time-weighted mean by the trapezoid rule."""
        if len(self._readings) < 2:
            return None
        pairs = list(zip(self._readings, self._readings[1:], strict=False))
        joules = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)
        return joules / (self._readings[-1][0] - self._readings[0][0])


def measure(
    step: Callable[[], object],
    source: EnergySource,
    synchronize: Callable[[], None],
    min_seconds: float = MIN_SECONDS,
) -> Energy:
    """Energy of at least `min_seconds` of back-to-back calls, the device idle at both ends of the reading.

    Raises: Unreadable.
    """
    step()
    synchronize()
    calls = 0
    with _Poll(source) as poll:
        start_joules, start = source.joules(), time.perf_counter()
        last = start_joules
        burst = 1
        while time.perf_counter() - start < min_seconds:
            began = time.perf_counter()
            for _ in range(burst):
                step()
            synchronize()
            calls += burst
            # Long bursts keep the device busy between waits; short ones keep the queue bounded.
            if time.perf_counter() - began < 0.1:
                burst *= 2
            last = _later(source, last)
        seconds, joules = time.perf_counter() - start, last - start_joules
    if not joules:
        raise Unreadable(f"the counter stood still for {seconds:.1f} s of work")
    polled = poll.mean_watts()
    ratio = None if polled is None else polled / (joules / seconds)
    return Energy(joules, seconds, calls, ratio)


def _later(source: EnergySource, before: float) -> float:
    """The counter, which has not gone back."""
    now = source.joules()
    if now < before:
        raise Unreadable(f"the counter went back from {before:.6g} to {now:.6g} J")
    return now


def idle_watts(source: EnergySource, seconds: float = IDLE_SECONDS) -> float:
    """Mean power in W with nothing of ours running. Raises: Unreadable."""
    start_joules, start = source.joules(), time.perf_counter()
    time.sleep(seconds)
    return (_later(source, start_joules) - start_joules) / (time.perf_counter() - start)
