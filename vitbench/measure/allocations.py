"""The CPU allocator's own record of what a call allocates and frees."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch._C._autograd import DeviceType
from torch.autograd.profiler import profile  # that of torch.profiler imports the compiler


def rise_of(call: Callable[[], object]) -> int:
    """Bytes by which the CPU tensors alive during `call` exceed, at most, those alive before it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else every start and stop is a line on stderr
    with profile(profile_memory=True) as profiler:
        result = call()
    assert profiler.kineto_results is not None
    now = peak = 0
    for event in profiler.kineto_results.events():  # in the order of time
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            now += event.nbytes()
            peak = max(peak, now)
    del result
    return peak
