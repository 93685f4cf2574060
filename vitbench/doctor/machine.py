"""`vitbench doctor`: what can be measured here. Each line is found out by trying, not by guessing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vitbench import catalog
from vitbench.columns import Column
from vitbench.measure import device as devices
from vitbench.measure import power


@dataclass(frozen=True)
class Finding:
    """One thing this machine has or lacks, and what follows from it."""

    topic: str
    ok: bool
    found: str
    means: str = ""


def findings() -> Iterator[Finding]:
    """Everything worth knowing, most important first."""
    yield Finding("vitbench", True, f"{devices.environment('cpu').vitbench}, {len(catalog.catalog())} models")
    yield Finding("python", True, platform.python_version())
    yield _torch()
    yield from _gpus()
    name = devices.environment("cpu").device_name
    yield Finding("cpu", True, f"{name}, {devices.cpu_threads()} threads")
    yield Finding("free memory", True, f"{devices.available_memory_mib() / 1024:.1f} GiB")
    source, why = power.find("cpu")
    yield Finding(
        "cpu energy",
        source is not None,
        "powercap, package zones" if source else why,
        "" if source else "energy columns stay empty for --device cpu",
    )
    yield from _packages()
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
    yield Finding(
        "C++ compiler",
        compiler is not None,
        compiler or "none on PATH",
        "" if compiler else "--impl compile is unsupported on the CPU; install g++",
    )


def _torch() -> Finding:
    version = devices.torch_version()
    return Finding("torch", True, version, "a CPU build: --device cuda cannot run" if version.endswith("+cpu") else "")


def _gpus() -> Iterator[Finding]:
    library = devices.nvml()
    if library is None:
        yield Finding(
            "gpu",
            False,
            "no NVIDIA driver (NVML not found)",
            "CPU timings are real; `vitbench memory` predicts a GPU's memory; GPU time and energy cannot be measured",
        )
        return
    for index in range(devices.gpu_count()):
        device = f"cuda:{index}"
        about = devices.environment(device)
        memory = library.nvmlDeviceGetMemoryInfo(devices.nvml_handle(device))
        yield Finding(
            device,
            True,
            f"{about.device_name}, driver {about.driver}, "
            f"{memory.free / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
        )
        source, why = power.find(device)
        yield Finding(
            f"{device} energy",
            source is not None,
            "NVML energy counter" if source else why,
            "" if source else "energy columns stay empty",
        )
        clocks = devices.clocks(device)
        yield Finding(
            f"{device} clocks",
            clocks.throttled is not None,
            f"{clocks.sm_clock_mhz} MHz, {clocks.temperature_c} C, throttled: {clocks.throttled}",
            "" if clocks.throttled is not None else "throttled samples cannot be told apart",
        )


def _packages() -> Iterator[Finding]:
    for package, module, lost in (
        ("triton", "triton", "fused kernels cannot run"),
        ("safetensors", "safetensors", "--weights cannot be read"),
        ("pillow", "PIL", "--images cannot be read"),
        ("altair", "altair", "no pictures and no HTML page are drawn"),
        ("vl-convert-python", "vl_convert", "no pictures and no HTML page are drawn"),
    ):
        there = importlib.util.find_spec(module) is not None
        version = importlib.metadata.version(package) if there else "not installed"
        yield Finding(package, there, version, "" if there else f"{lost}; pip install {package}")


def table(found: Sequence[Finding]) -> list[Column]:
    """A row for each; what was found folds and is not cut, as there are no numbers to make room for."""
    return [
        Column("topic", [one.topic for one in found], "word"),
        Column("here", ["yes" if one.ok else "NO" for one in found], "word"),
        Column("found", [one.found for one in found], "key"),
        Column("means", [one.means for one in found], "key"),
    ]
