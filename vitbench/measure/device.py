"""What this machine is: its name and identity for the row, its clocks and limits while measuring.

Imports no torch, so that planning and resuming know the machine without it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitbench import __version__
from vitbench.errors import InputError
from vitbench.results.row import Environment


@functools.cache
def nvml() -> Any | None:
    """The initialised pynvml module, or None where there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def gpu_count() -> int:
    library = nvml()
    return 0 if library is None else int(library.nvmlDeviceGetCount())


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


@functools.cache
def nvml_handle(device: str) -> Any:
    """NVML's handle of a torch device name, which counts only the GPUs in CUDA_VISIBLE_DEVICES."""
    library = nvml()
    if library is None:
        raise InputError(no_gpu_reason())
    visible = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    if not visible:
        return library.nvmlDeviceGetHandleByIndex(_index(device))
    entry = visible[_index(device)]
    return (
        library.nvmlDeviceGetHandleByIndex(int(entry)) if entry.isdigit() else library.nvmlDeviceGetHandleByUUID(entry)
    )


def no_gpu_reason() -> str:
    """Why `--device cuda` cannot be had, and what to use."""
    if nvml() is None:
        return "device 'cuda' needs an NVIDIA GPU and driver, and NVML finds none here; use --device cpu"
    return f"this machine has {gpu_count()} GPU(s), counted from cuda:0; see `vitbench doctor`"


def torch_version() -> str:
    return importlib.metadata.version("torch")


def check_device(device: str) -> str:
    """The device's name, "cpu", "cuda" or "cuda:N", when this machine has it.

    Raises: InputError saying what is missing.
    """
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise InputError(f"device {device!r} is unknown; allowed: cpu, cuda, cuda:N")
    if kind == "cuda":
        if _index(device) >= gpu_count():
            raise InputError(no_gpu_reason())
        if torch_version().endswith("+cpu"):
            raise InputError(f"torch {torch_version()} is built without CUDA; install a CUDA build or use --device cpu")
    return device


def default_device() -> str:
    return "cuda" if gpu_count() and not torch_version().endswith("+cpu") else "cpu"


def cpu_name() -> str:
    """The processor's model, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _machine_digest() -> str:
    """An identity for a machine's CPU that does not give away its name."""
    try:
        identity = Path("/etc/machine-id").read_text().strip()
    except OSError:
        identity = ""
    return "cpu-" + hashlib.sha256((identity or platform.node()).encode()).hexdigest()[:12]


def cpu_threads() -> int:
    """The threads torch will use: OMP_NUM_THREADS, else the cores this process may run on."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else len(os.sched_getaffinity(0))


def available_memory_mib() -> float:
    """Main memory in MiB that can be taken without swapping, as the kernel estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return float("inf")


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(device: str) -> Environment:
    """The machine, the software and the code, as rows name them."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "vitbench", "kernels", "pyproject.toml")
    name, uuid, driver = cpu_name(), _machine_digest(), None
    if device != "cpu":
        library, handle = nvml(), nvml_handle(device)
        assert library is not None
        name = str(library.nvmlDeviceGetName(handle))
        uuid = str(library.nvmlDeviceGetUUID(handle))
        driver = str(library.nvmlSystemGetDriverVersion())
    return Environment(
        device_name=name,
        device_uuid=uuid,
        driver=driver,
        torch=torch_version(),
        triton=_version("triton"),
        vitbench=__version__,
        commit=commit,
        dirty=None if commit is None else bool(changed),
        threads=cpu_threads(),
    )


def slug(name: str) -> str:
    """A device's name as a folder name."""
    words = "".join(c if c.isalnum() else " " for c in name.lower().replace("(r)", " ").replace("(tm)", " ")).split()
    return "-".join(words)


@dataclass(frozen=True)
class Clocks:
    """One reading around a measurement; None where the machine does not say."""

    sm_clock_mhz: float | None
    temperature_c: float | None
    throttled: bool | None


def _quietly(read: Callable[[], Any]) -> Any | None:
    library = nvml()
    assert library is not None
    try:
        return read()
    except library.NVMLError:
        return None


def clocks(device: str) -> Clocks:
    """The SM clock, the temperature and whether the clock is held down by heat or power."""
    library = nvml()
    if device == "cpu" or library is None:
        return Clocks(None, None, None)
    handle = nvml_handle(device)
    reasons = _quietly(lambda: library.nvmlDeviceGetCurrentClocksEventReasons(handle))
    held_down = (
        library.nvmlClocksEventReasonSwThermalSlowdown
        | library.nvmlClocksThrottleReasonHwThermalSlowdown
        | library.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        | library.nvmlClocksThrottleReasonHwSlowdown
    )
    return Clocks(
        sm_clock_mhz=_quietly(lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_SM)),
        temperature_c=_quietly(lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)),
        throttled=None if reasons is None else bool(reasons & held_down),
    )
