"""What the kernels ask about where they run: interpreter or GPU, which architecture, under which autocast."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton saw it when it was imported, just now


#: The key under which an operator is there for every device; `kernels_run_on` then tells who computes it.
EVERY_DEVICE = "CompositeExplicitAutograd"

MULTIPROCESSORS = 132  # of an H100 or H200
#: Of the card that stands for an architecture where launches are made without one.
_MULTIPROCESSORS = {80: 108, 86: 72, 89: 128, 90: MULTIPROCESSORS, 100: 148, 103: 148, 120: 170}


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's GPU the current one, on which Triton launches; does nothing where it is already."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def on_nvidia(tensor: Tensor) -> bool:
    """Whether the tensor is on an NVIDIA GPU; a ROCm build calls AMD's "cuda" too, with numbers of its own."""
    return tensor.is_cuda and torch.version.hip is None


def arch_of(tensor: Tensor) -> int:
    """Compute capability of the tensor's NVIDIA GPU, 90 for sm_90; also 90 where the interpreter runs the kernels."""
    return _arch_of_gpu(tensor.device) if on_nvidia(tensor) else 90


def _arch_of_gpu(device: torch.device) -> int:
    """A constant of the graph for torch.compile, which would otherwise put the question into it."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def multiprocessors_of(tensor: Tensor, arch: int) -> int:
    """How many multiprocessors the tensor's NVIDIA GPU has; on the meta device those of a card of that architecture."""
    if on_nvidia(tensor):
        return torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return _MULTIPROCESSORS.get(arch, MULTIPROCESSORS) if tensor.is_meta else MULTIPROCESSORS


# The mark of torch.compiler.assume_constant_result, which imports all of torch.compile to set it: seconds a process.
_arch_of_gpu._dynamo_marked_constant = True  # type: ignore[attr-defined]


def reads_operands_from_registers(arch: int) -> bool:
    """Whether the matrix unit takes both operands from registers (sm_80, sm_86, sm_120), so that fewer tiles fit."""
    return arch // 10 not in (9, 10)


def reads_results_from_tensor_memory(arch: int) -> bool:
    """Whether products are read out of tensor memory (sm_100), into registers beside those already in use."""
    return arch // 10 == 10


def kernels_run_on(tensor: Tensor) -> bool:
    """Whether this tensor goes through the Triton kernels; otherwise the plain PyTorch reference computes it.

    Kernels, blocks and warps are chosen for NVIDIA's GPUs. Every other device gets the reference: ROCm, XPU, MPS, HPU.
    """
    return on_nvidia(tensor) or (INTERPRETED and (tensor.device.type == "cpu" or tensor.is_meta))


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Turns autocast off for the tensor's device, where it is on; some devices have none to turn off."""
    kind = tensor.device.type
    if tensor.is_meta or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def check_interpretable(q: Tensor) -> None:
    if q.dtype == torch.bfloat16 and not q.is_cuda:
        raise ValueError("Triton's interpreter computes bfloat16 wrongly; use float16, float32 or no TRITON_INTERPRET")


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast casts x to; None where it is off, for fp64, and on the meta device, which it does not know."""
    kind = x.device.type
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where autocast is on; unchanged otherwise."""
    dtype = autocast_dtype(tensors[0])
    return tensors if dtype is None else tuple(tensor.to(dtype) for tensor in tensors)
