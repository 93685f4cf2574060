"""Peak memory of a step: predicted for the CPU, read from the CPU's allocator, read from CUDA's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitbench.catalog import Resolution
from vitbench.measure.allocations import rise_of
from vitbench.measure.step import Step, make_step
from vitbench.measure.workspace import Kernel, recurrent_layer
from vitbench.trace import compiler
from vitbench.trace.skeleton import Unwritten, quietly, replace_tensors
from vitbench.trace.tracer import Tracer

Allocator = Literal["cpu", "cuda"]

MIB = 2**20
#: Bytes that an allocator rounds each tensor up to: CUDA's caching allocator, and the C library's for the CPU.
GRANULE: dict[Allocator, int] = {"cpu": 1, "cuda": 512}


@dataclass(frozen=True)
class MemoryEstimate:
    """In MiB: `static_mib` lives between steps (weights, buffers, optimizer state, input), `peak_mib` includes it."""

    static_mib: float
    peak_mib: float


@dataclass(frozen=True)
class MemoryMeasurement:
    """In MiB; `reserved_mib` is what CUDA's caching allocator took from the device, None on the CPU."""

    static_mib: float
    peak_mib: float
    reserved_mib: float | None


def predict(
    build: Callable[[], nn.Module],
    resolution: Resolution,
    batch: int,
    mode: Literal["infer", "train"],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    autocast: torch.dtype | None = None,
    in_chans: int = 3,
) -> MemoryEstimate:
    """Memory of one step of `make_step` on the CPU, from shapes alone: the model computes nothing.

    The step runs on hollow tensors while the storages that are alive are added up. In training it is the second step,
    when the optimizer's state exists. What a kernel allocates and frees inside itself is seen for convolutions,
    resizes, products in half precision and whole layers of torch's (`workspace`), and for AdamW.

    Args:
        build: makes the model; called with the meta device as default.
        dtype: of parameters and input.
        autocast: dtype of mixed precision, or None.
    """
    with torch.device("meta"), Unwritten():
        built = build()

    def fake(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        if channels_last and tensor.ndim == 4:  # as Module.to(memory_format=...) lays it out
            return torch.empty(tensor.shape, dtype=kind, memory_format=torch.channels_last)
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind)

    def traced(idle: frozenset[int]) -> MemoryEstimate:
        """Of a second step, where the parameters that are `idle`, by number, got no gradient in the first."""
        kernels: list[tuple[int, Kernel]] = []

        def watch(op: Any, args: tuple[Any, ...], out: Any) -> None:
            if kernel := Kernel.of(op, args, out):
                kernels.append((tracer.now, kernel))

        reached: set[Tensor] = set()
        tracer = Tracer({torch.ops.aten.mkldnn_rnn_layer.default: recurrent_layer}, _inside, watch)
        with quietly(), tracer:
            model = replace_tensors(built, fake)
            step = make_step(model, fake(torch.empty(batch, in_chans, *resolution)), mode, autocast)
            learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
            if step.optimizer is not None:
                for number, parameter in enumerate(learned):
                    if number not in idle:
                        parameter.grad = torch.empty_like(parameter)
                step.update()
                for parameter in learned:
                    parameter.register_post_accumulate_grad_hook(reached.add)
            with tracer.recording({"held": step.held()}):
                static = tracer.now
                step()
        missed = frozenset(number for number, parameter in enumerate(learned) if parameter not in reached)
        if step.optimizer is not None and missed != idle:
            return traced(missed)
        peak = tracer.peak
        for before, kernel in sorted(kernels, key=lambda seen: -seen[0] - seen[1].rise_bound()):
            if before + kernel.rise_bound() <= peak:
                break
            peak = max(peak, before + kernel.rise())
        return MemoryEstimate(static / MIB, peak / MIB)

    return compiler.retried(lambda: traced(frozenset()))


def _inside(op: Any, args: tuple[Any, ...], out: Any) -> int:
    """The CPU's AdamW goes through the tensors one by one and makes a contiguous copy of each gradient."""
    if op is not torch.ops.aten._fused_adamw_.default:
        return 0
    return max((gradient.nbytes for gradient in args[1] if not gradient.is_contiguous()), default=0)


def _rounded(size: int, granule: int) -> int:
    return -(-size // granule) * granule


def _static_bytes(step: Step, granule: int) -> int:
    storages = (tensor.untyped_storage() for tensor in step.held())
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(_rounded(size, granule) for size in sizes.values())


def measure(step: Step) -> MemoryMeasurement:
    """The real peak of one call of `step`, which must have been called before (optimizer state, compilation)."""
    return measure_cuda(step) if step.x.is_cuda else measure_cpu(step)


def measure_cpu(step: Step) -> MemoryMeasurement:
    """Read from the CPU allocator: compiled code and temporaries inside kernels are seen."""
    static = _static_bytes(step, GRANULE["cpu"])
    return MemoryMeasurement(static / MIB, (static + rise_of(step)) / MIB, None)


def measure_cuda(step: Step) -> MemoryMeasurement:
    """Read from CUDA's caching allocator, whose cache is emptied first; other tensors on the device are left out."""
    device = step.x.device
    static = _static_bytes(step, GRANULE["cuda"])
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = step()
    torch.cuda.synchronize(device)
    peak = static + torch.cuda.max_memory_allocated(device) - before
    reserved = static + torch.cuda.max_memory_reserved(device) - before
    del result
    return MemoryMeasurement(static / MIB, peak / MIB, reserved / MIB)


__all__ = ["MemoryEstimate", "MemoryMeasurement", "measure", "measure_cpu", "measure_cuda", "predict"]
