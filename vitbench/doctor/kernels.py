"""One launch of every kernel against its reference, in a process of its own: what breaks the device ends with it.

Without a GPU that process runs them in Triton's interpreter, those that few programs suffice for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

from vitbench.doctor.check import FAILED, LATE, Check
from vitbench.process import Process, python_environment


def check_kernels(device: str, seconds: float) -> Iterator[Check]:
    """A check for each case; one that says so where the process ends or is not through after so many seconds."""
    environment = python_environment(without=["TRITON_INTERPRET"])
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "vitbench.doctor.launches", device]
    late = threading.Event()
    with Process(command, environment=environment, asked=True) as process:

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            while (check := process.hear()) is not None:
                yield check
        except EOFError:
            if late.is_set():
                yield Check("kernels", LATE, seconds, f"not through after {seconds:.0f} s")
            else:
                yield Check("kernels", FAILED, 0.0, process.how_it_ended())
        finally:
            timer.cancel()
