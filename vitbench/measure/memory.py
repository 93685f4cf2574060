"""Peak memory of a step: predicted without running it, read from the CPU's allocator, read from CUDA's."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitbench.catalog import Resolution
from vitbench.measure.allocations import rise_of
from vitbench.measure.convolution_workspace import Convolution
from vitbench.measure.step import Step, make_step
from vitbench.trace.skeleton import fakes, is_composite, replace_tensors

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
    allocator: Allocator = "cuda",
    channels_last: bool = False,
    autocast: torch.dtype | None = None,
    in_chans: int = 3,
) -> MemoryEstimate:
    """Memory of one step of `make_step`, from shapes alone: nothing is computed and no GPU is needed.

    The step runs on fake CPU tensors while the storages that are alive are added up. In training it is the
    second step, when the optimizer's state exists. What a kernel allocates and frees inside itself is seen
    for CPU convolutions (`convolution_workspace`) and the CPU's AdamW only: the packing of matrices in bf16
    and fp16 products on the CPU is not (about 1 % of a small model's training step), and cuDNN's and
    cuBLAS's workspaces are not in the "cuda" figure. Where CUDA chooses other operators than the CPU does
    (an attention backend, autocast of normalisations) it can be off by what they save.

    Args:
        build: makes the model; called with the meta device as default.
        dtype: of parameters and input.
        autocast: dtype of mixed precision, or None.
    """
    with torch.device("meta"):
        built = build()
    with fakes():

        def fake(tensor: Tensor) -> Tensor:
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            if channels_last and tensor.ndim == 4:  # as Module.to(memory_format=...) lays it out
                return torch.empty(tensor.shape, dtype=kind, memory_format=torch.channels_last)
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind)

        model = replace_tensors(built, fake)
        step = make_step(model, fake(torch.empty(batch, in_chans, *resolution)), mode, autocast)
        if step.optimizer is not None:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            step.update()
        live = _LiveStorages(GRANULE[allocator], step.held())
        static = live.now
        with live:
            step()
    peak = live.peak
    if allocator == "cpu":
        peak = max(peak, live.cpu_update_peak)
        for before, convolution in sorted(live.convolutions, key=lambda seen: -seen[0] - seen[1].rise_bound()):
            if before + convolution.rise_bound() <= peak:
                break
            peak = max(peak, before + convolution.rise())
    return MemoryEstimate(static / MIB, peak / MIB)


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that are alive; `now` and `peak` in bytes."""

    def __init__(self, granule: int, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.cpu_update_peak = 0
        self.convolutions: list[tuple[int, Convolution]] = []
        self._granule = granule
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions about a tensor, the greater part of all calls
            return func(*args, **kwargs)
        if is_composite(func) and not _is_whole(func):
            with self:
                return func.decompose(*args, **kwargs)
        before = self.now
        out = func(*args, **kwargs)
        if convolution := Convolution.of(func, args, out):
            self.convolutions.append((before, convolution))
        if func is torch.ops.aten._fused_adamw_.default:
            # The CPU's kernel goes through the tensors one by one and makes a contiguous copy of each gradient.
            copies = [gradient.nbytes for gradient in args[1] if not gradient.is_contiguous()]
            self.cpu_update_peak = before + max(copies, default=0)
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, Tensor):
                self._see(item)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = _rounded(storage.nbytes(), self._granule)
        self._known[key] = weakref.ref(storage, lambda _: self._free(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def _is_whole(op: Any) -> bool:
    """Whether a composite is one kernel without temporaries on a CPU or GPU, and a sequence in Python alone."""
    return str(op.overloadpacket.__name__).lstrip("_").startswith(("upsample", "max_pool1d"))


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
