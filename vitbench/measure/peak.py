"""The device's own rate on a large matrix product: what a model's utilisation is a share of."""

from __future__ import annotations

import torch

from vitbench.measure import latency

SIZE_CUDA = 8192
SIZE_CPU = 2048
#: With so few threads as fill themselves with it: the same rate within 3 %, in an eighth of the time.
FEW_THREADS, SIZE_FEW_THREADS = 2, 1024
SECONDS = 0.3


def matmul_tflops(device: torch.device, dtype: torch.dtype, seconds: float = SECONDS) -> float:
    """10^12 FLOP/s of a square matrix product of normal random numbers, at its fastest.

    Measured, not taken from a data sheet, so that it holds on any device and at its actual clocks.
    TF32 applies as torch is set. The fastest of what 0.3 s hold needs no settled median.

    Args:
        seconds: how long it is measured, where SECONDS are more: no longer than what it is held against.
    """
    on_cpu = SIZE_FEW_THREADS if torch.get_num_threads() <= FEW_THREADS else SIZE_CPU
    size = SIZE_CUDA if device.type == "cuda" else on_cpu
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    lasts = min(seconds, SECONDS)
    (timing,) = latency.measure([lambda: a @ b], device, min_seconds=lasts, max_seconds=lasts)
    return 2 * size**3 / (min(timing.samples_ms) * 1e-3) / 1e12
