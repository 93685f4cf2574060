"""The worker that measures, whose model does what the first argument says when it is given three images.

No check uses three; all but the model's forward pass is real. Further arguments are folders that a fault needs.
"""

from __future__ import annotations

import base64
import ctypes
import locale
import os
import pickle
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.bench import worker
from vitbench.bench.build import Workload
from vitbench.bench.messages import Done

IMAGES = 3
STICKY = "CUDA error: an illegal memory access was encountered"
_broken = False


def hang(y: Tensor) -> None:
    """Listens to nothing but SIGKILL."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    time.sleep(3600)


def memory(y: Tensor) -> None:
    """Takes main memory until the kernel gives no more: 256 MiB above what the process has."""
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + 2**28,) * 2)
    held = []
    while True:
        held.append(torch.ones(2**24))


def sticky(y: Tensor) -> None:
    """From here on nothing runs in this process, as after a fault of a CUDA kernel."""
    global _broken
    _broken = True
    raise RuntimeError(STICKY)


def segfault(y: Tensor) -> None:
    os.write(2, b"\x1b[2J\x00\xff last words")
    ctypes.string_at(0)


def binary(y: Tensor) -> None:
    """Bytes that are no text, and a line that looks as if the worker said that it is done."""
    print("a line")
    os.write(1, bytes(range(256)) * 64 + b"\n" + base64.b64encode(pickle.dumps(Done(False))) + b"\n")


def nan(y: Tensor) -> Tensor:
    return y * float("nan")


def set_clock_back() -> None:
    """Whoever asks for the time of day is told an earlier one each time."""
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    time.time = earlier
    time.time_ns = lambda: int(earlier() * 1e9)


def decimal_commas(folder: str) -> None:
    """A locale as of Germany, for everything in this process; C reads and writes numbers with commas."""
    os.environ["LOCPATH"] = folder
    locale.setlocale(locale.LC_NUMERIC, "comma")
    assert locale.str(1.5) == "1,5"


def slow_compiler(folder: str) -> None:
    """A C++ compiler that does not end, and nothing compiled that could be used again."""
    from torch._inductor import config

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    script = Path(folder) / "g++"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *--version*) exec g++ --version;; esac\ntouch "$0.called"\nexec sleep 3600\n'
    )
    script.chmod(0o755)
    config.cpp.cxx = (None, str(script))  # type: ignore[assignment]


IN_THE_MODEL = {one.__name__: one for one in (hang, memory, sticky, segfault, binary, nan)}
IN_THE_PROCESS = {one.__name__: one for one in (set_clock_back, decimal_commas, slow_compiler)}


def main() -> None:
    fault, folders = sys.argv[1], sys.argv[2:]
    if fault in IN_THE_PROCESS:
        IN_THE_PROCESS[fault](*folders)  # type: ignore[operator]
        return worker.main()
    make = Workload.module

    def hook(_: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Any:
        if _broken:
            raise RuntimeError(STICKY)
        return IN_THE_MODEL[fault](y) if len(given[0]) == IMAGES else None

    def module(*asked: Any) -> nn.Module:
        made = make(*asked)
        if not made._forward_hooks:
            made.register_forward_hook(hook)
        return made

    Workload.module = module  # type: ignore[method-assign]
    return worker.main()
