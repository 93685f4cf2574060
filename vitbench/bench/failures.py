"""What became of a case that raised: its status and the one line that says why."""

from __future__ import annotations

import torch

from vitbench.bench.check import Incorrect, Unverifiable
from vitbench.errors import Unsupported

#: Messages of errors after which a CUDA context cannot be used again.
POISON = ("CUDA error", "device-side assert", "illegal memory access", "misaligned address", "launch failure")


class DoesNotFit(Exception):
    """The case needs more memory than there is, by prediction."""


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def breaks_device(error: Exception, device: str) -> bool:
    """Whether this process can use the device no more."""
    if any(sign in str(error) for sign in POISON):
        return True
    if device == "cpu":
        return False
    try:
        torch.cuda.synchronize(device)
    except Exception:
        return True
    return False


def classify(error: Exception) -> tuple[str, str]:
    """The status and the one-line reason of a case that raised; "unsupported" only where it was refused by name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, Unsupported):
        return "unsupported", text[:300]
    if isinstance(error, Incorrect):
        return "incorrect", text
    if isinstance(error, Unverifiable):
        return "unsupported", f"cannot be verified: {text}"
    if isinstance(error, DoesNotFit) or is_out_of_memory(error):
        return "oom", text[:300]
    if "InvalidCxxCompiler" in type(error).__name__ or "InvalidCxxCompiler" in str(error):
        return "unsupported", "torch.compile needs a C++ compiler and finds none"
    return "error", f"{type(error).__name__}: {text[:300]}"
