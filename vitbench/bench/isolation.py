"""What a case may leave behind in its process, and whether it did: no case sees the state of another.

A model, or the library that it is from, can leave a mode of torch entered, a default changed, or tensors without
data in a cache. Caches are emptied; for the rest the process is replaced.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from vitbench.trace import hollow

#: Whose caches are emptied: every library of models.
LIBRARIES = ("timm", "torchvision", "transformers")


def state() -> dict[str, object]:
    """Torch's switches by name; equal before and after whatever leaves them alone."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "a trace": torch._C._get_tracing_state() is not None,
        "the dispatch modes": torch._C._len_torch_dispatch_stack(),
        "the function modes": torch._C._len_torch_function_stack(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "oneDNN": torch._C._get_mkldnn_enabled(),
        "the encoder's fast path": torch.backends.mha.get_fastpath_enabled(),
        "the number of threads": torch.get_num_threads(),
    }


def changed(before: dict[str, object]) -> list[str]:
    """The names of what is no more as `before`."""
    now = state()
    return [name for name in before if before[name] != now[name]]


def fakes_held() -> int:
    """How many tensors without data anything still holds."""
    kinds = (Tensor, nn.Parameter)
    return sum(
        type(one) is FakeTensor or (type(one) in kinds and one.layout is torch.strided and hollow.is_hollow(one))
        for one in gc.get_objects()
    )


def forget() -> None:
    """Empties the caches of libraries of models, which can hold tensors without data, or of another device."""
    for cached in _caches(len(sys.modules)):
        cached.cache_clear()
    give_back()


def give_back() -> None:
    """Returns freed memory to the system: between blocks that live on glibc keeps it, and hundreds of models add up."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


@functools.lru_cache(maxsize=1)
def _caches(modules: int) -> list[Any]:
    """What libraries make when they are imported; looked for again when there are more modules, as that takes long."""
    return [
        one
        for one in gc.get_objects()
        if type(one) is functools._lru_cache_wrapper and str(one.__module__).startswith(LIBRARIES)
    ]


__all__ = ["LIBRARIES", "changed", "fakes_held", "forget", "give_back", "state"]
