"""Large tensors of which a test touches a few pages only."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor


def untouched(elements: int, dtype: torch.dtype, device: str) -> Tensor:
    """[elements] of dtype; on the CPU zeros that take memory only where they are read or written."""
    if device != "cpu":
        return torch.zeros(elements, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype=dtype)
