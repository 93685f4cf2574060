"""What became of a case that raised: its status and the one line that says why."""

from __future__ import annotations

from typing import Any

import torch

from vitbench.bench.check import Incorrect, Unverifiable

#: Messages of errors after which a CUDA context cannot be used again.
POISON = ("CUDA error", "device-side assert", "illegal memory access", "misaligned address", "launch failure")


class Unsupported(Exception):
    """This machine or this implementation cannot run the case; `known` is the part of its row that holds anyhow."""

    def __init__(self, reason: str, known: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.known = known or {}


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
    """The status and the one-line reason of a case that raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, Unsupported):
        return "unsupported", text
    if isinstance(error, Incorrect):
        return "incorrect", text
    if isinstance(error, Unverifiable):
        return "unsupported", f"cannot be verified: {text}"
    if isinstance(error, DoesNotFit) or is_out_of_memory(error):
        return "oom", text[:300]
    # What torch raises where a backend has no such operator; ops/bundle.py raises it for FlexAttention's own gaps.
    if isinstance(error, NotImplementedError) or "not implemented for" in text:
        return "unsupported", text[:300]
    if "InvalidCxxCompiler" in type(error).__name__ or "InvalidCxxCompiler" in str(error):
        return "unsupported", "torch.compile needs a C++ compiler and finds none"
    return "error", f"{type(error).__name__}: {text[:300]}"
