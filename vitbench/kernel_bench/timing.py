"""Times implementations against each other with a cold L2, and once more as CUDA graphs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from vitbench.measure.graphs import record_call
from vitbench.measure.latency import Latency, Step, measure

#: A kernel's sample is microseconds long, so its interval is narrow after little measured time.
MIN_SECONDS = 0.01
MAX_SECONDS = 2.0


def l2_flush(device: torch.device) -> Callable[[], object] | None:
    """A callable that overwrites the device's whole L2 cache; None on the CPU, whose caches are left as they are."""
    if device.type != "cuda":
        return None
    # Twice its size: lines are not replaced in the order of their age.
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    buffer = torch.empty(size, dtype=torch.int8, device=device)
    return buffer.zero_


def latencies(steps: Sequence[Step], device: torch.device, max_seconds: float = MAX_SECONDS) -> list[Latency]:
    """Interleaved samples of each step, every one after a flush of the L2."""
    return measure(steps, device, MIN_SECONDS, max_seconds, before=l2_flush(device))


def graph_us(
    steps: Sequence[Step], device: torch.device, max_seconds: float = MAX_SECONDS
) -> list[tuple[float | None, str]]:
    """(median in us as a CUDA graph, "") of each step, or (None, why there is none); all None on the CPU.

    Without the launches, the difference to the plain time is what launching costs.
    """
    if device.type != "cuda":
        return [(None, "") for _ in steps]
    replays: list[Step] = []
    found: list[tuple[float | None, str]] = []
    at: list[int] = []
    for i, step in enumerate(steps):
        try:
            replay = record_call(step, device)
            replay()
            torch.cuda.synchronize(device)
            replays.append(replay)
            at.append(i)
            found.append((None, ""))
        except Exception as problem:
            found.append((None, f"no CUDA graph: {problem}"))
    try:
        timed = latencies(replays, device, max_seconds) if replays else []
    except Exception as problem:  # the times without a graph are there, and stay
        return [(None, why or f"replaying as CUDA graphs failed: {problem}") for _, why in found]
    for i, latency in zip(at, timed, strict=True):
        found[i] = (1e3 * statistics.median(latency.samples_ms), "")
    return found
