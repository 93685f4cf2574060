"""`vitbench doctor`: what can be measured here. Each line is found out by trying, not by guessing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from vitbench import catalog
from vitbench.console import console
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


def print_report() -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    for finding in findings():
        table.add_row(finding.topic, "yes" if finding.ok else "NO", finding.found, finding.means)
    console().print(table)
