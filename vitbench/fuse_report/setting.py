"""What is asked about, and what is known of it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from vitbench.catalog import Resolution
from vitbench.predict.table import Kernel

Kernels = tuple[tuple[Kernel, int], ...]


@dataclass(frozen=True)
class Setting:
    """A model at a size."""

    model: str
    resolution: Resolution


@dataclass(frozen=True)
class Answer:
    """Modules that kernels serve and those that are left, in numbers and in words; of one image, 10^9
    multiply-accumulates and those of them that operators of vitkernels compute; or why that is not known. `kernels` are
    those of CUDA that the model starts unfused, under bf16 autocast, each with how often; `within` those of the modules
    that are served; both empty where the model's code does not run on tensors without data.
    """

    served: int = 0
    served_modules: str = ""
    left: int = 0
    left_modules: str = ""
    gmacs: float = 0.0
    kernel_gmacs: float = 0.0
    reason: str = ""
    kernels: Kernels = ()
    within: Kernels = ()


__all__ = ["Answer", "Setting"]
