"""Tensors derived from weights (folded norms, packed layers, expanded biases): made at every call, unless frozen.

What may be derived is a function of tensors, its sources, and of a key: settings that are no tensors.

How long it is valid nobody can see. Torch counts the writes to a tensor, but not those through `.data` or numpy, by
fused optimizers, by the replay of a captured CUDA graph, by what gathers sharded parameters, by other processes. So
nothing is kept until someone who knows says that the weights stay as they are: `freeze(model)`. That promise ends with
`thaw(model)`, which a fused model's `train()` calls. Writes that torch counts are seen in spite of it; after others
call `refresh`.

For whom something is kept:

- Autograd: for passes under no_grad or inference_mode only, since autograd may save what it is given.
- Threads: any; only one at a time makes something, and nobody takes what is being renewed.
- Streams: any; the device has finished making a value before it is kept.
- CUDA graphs: a capture takes what is kept and keeps nothing. That memory lives as long as the layer, is never given to
  anything else and is renewed in place: a graph reads the new weights once one eager pass without gradients has run.
  What is not kept when a capture begins becomes part of the graph.
- Copies, pickles and replicas (`nn.DataParallel`) are other modules, which nobody has frozen.
- Sharded parameters and other subclasses of Tensor: `freeze` refuses them. Shard and convert first.
- Tracing (torch.compile, torch.export, fake tensors, counters, function transforms): `make` becomes part of what is
  traced.

What it costs: a model that is not frozen derives at every call, about ten small operations for each norm. A folded
3 x 3 depthwise convolution takes 64 us of host time on one CPU core so, and 35 us kept; packed linear layers and CMT's
expanded biases are not worth that for one call, and their plain form runs instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from vitkernels.runtime.device import autocast_dtype


@dataclass
class _Kept:
    """What the sources were like, their storages (so that none is freed and its address used again), and the result."""

    stamp: tuple[Any, ...] | None
    storages: list[torch.UntypedStorage]
    value: Any


@dataclass
class _Owner:
    """Whether its weights stay as they are, and results by name and key; they are never dropped: graphs read them."""

    frozen: bool = True
    results: dict[Any, _Kept] = field(default_factory=dict)


#: Weak: what is kept goes with its owner, and copying or pickling the owner leaves it behind.
_OWNERS: Any = WeakIdKeyDictionary()
_MAKING = threading.RLock()
#: Results of one owner, such as those for several dtypes or sizes; what comes later is made at every call.
_MOST = 16
_PLAIN = (Tensor, nn.Parameter)


def _parts(model: nn.Module) -> Iterator[object]:
    yield from model.modules()
    yield from model.parameters()
    yield from model.buffers()


def freeze(model: nn.Module) -> None:
    """Says that a model's weights, buffers and settings stay as they are, so that what is derived from them is kept.

    To be called when the model is loaded, converted and on its device, and again after any change that torch does not
    count; in evaluation without gradients it saves making at every call what kernels want of the weights. A frozen
    model's parameters cannot be exchanged by torch.utils.swap_tensors, which torch says itself.

    Raises: ValueError where a parameter or buffer is of a subclass of Tensor, such as those of a sharded model.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if type(tensor) not in _PLAIN:
            raise ValueError(f"freeze: {name} is a {type(tensor).__name__}, whose writes nobody counts")
    for name, module in model.named_modules():
        if getattr(module, "_is_fsdp_managed_module", False):
            raise ValueError(f"freeze: {name or 'the model'} is sharded, and gathers its parameters uncounted")
    with _MAKING:
        for part in _parts(model):
            _OWNERS.setdefault(part, _Owner()).frozen = True
    refresh(model)


def thaw(model: nn.Module) -> None:
    """Takes `freeze` back: everything is derived at every call. CUDA graphs go on reading what was kept."""
    for part in _parts(model):
        if (owner := _OWNERS.get(part)) is not None:
            owner.frozen = False


def refresh(model: nn.Module) -> None:
    """What a frozen model keeps is derived again, in place, at its next use; of any other model nothing is kept.

    To be called after writes that torch does not count: through `.data` or numpy, by the replay of a CUDA graph.
    """
    with _MAKING:
        for part in _parts(model):
            if (owner := _OWNERS.get(part)) is not None:
                for kept in owner.results.values():
                    kept.stamp = None


def is_frozen(owner: object) -> bool:
    """Whether what is derived of owner is kept in this pass, so that more may be derived than pays for one call."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    found: _Owner | None = _OWNERS.get(owner)
    return found is not None and found.frozen


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a pass with these is to have gradients of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def derived(
    owner: object,
    name: str,
    make: Callable[..., Any],
    *sources: Tensor | None,
    key: tuple[Any, ...] = (),
    watch: tuple[Tensor | None, ...] = (),
) -> Any:
    """make(*sources), or the same from an earlier call where owner is frozen, as the module says.

    Args:
        owner: the module, parameter or buffer that the result lives as long as.
        name: tells apart several results of one owner.
        make: gives a tensor, or a tuple of tensors and None; reads nothing but its arguments and what key tells.
        key: what else the result depends on, such as a dtype; autocast is looked at anyway.
        watch: tensors that torch counts writes of whenever sources are written to uncounted.
    """
    if not is_frozen(owner):
        return make(*sources)
    given = [t for t in (*sources, *watch) if t is not None]
    if any(type(t) not in _PLAIN or t.is_inference() for t in given) or _outside_of_eager():
        return make(*sources)
    stamp = tuple((t._version, t.data_ptr(), t.dtype, t.stride()) for t in given)
    slot = (name, key, autocast_dtype(given[0]) if given else None)
    results: dict[Any, _Kept] = _OWNERS[owner].results
    kept = results.get(slot)
    if kept is not None and kept.stamp == stamp:
        return kept.value
    if _capturing() or (kept is None and len(results) >= _MOST):
        return make(*sources)
    with _MAKING:
        return _renewed(results, slot, stamp, make, sources, given)


def _renewed(
    results: dict[Any, _Kept],
    slot: tuple[Any, ...],
    stamp: tuple[Any, ...],
    make: Callable[..., Any],
    sources: tuple[Tensor | None, ...],
    given: list[Tensor],
) -> Any:
    kept = results.get(slot)
    if kept is not None and kept.stamp == stamp:  # another thread was faster
        return kept.value
    with torch.inference_mode(False), torch.no_grad():
        value = make(*sources)
        if kept is not None:
            kept.stamp = None
            if _written_over(kept, value):
                value = kept.value
    for tensor in _tensors(value):
        if tensor.is_cuda:
            torch.cuda.current_stream(tensor.device).synchronize()
    results[slot] = _Kept(stamp, [t.untyped_storage() for t in given], value)
    return value


def _outside_of_eager() -> bool:
    """Whether tensors are traced, faked, wrapped or watched just now."""
    return bool(torch._C._len_torch_dispatch_stack()) or torch._C._functorch.peek_interpreter_stack() is not None


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in (value if isinstance(value, tuple) else (value,)) if x is not None]


def _written_over(kept: _Kept, value: Any) -> bool:
    """Puts new tensors into the memory of the old where they fit, unless that is a source's own."""
    old, new = _tensors(kept.value), _tensors(value)
    taken = {storage._cdata for storage in kept.storages}
    if len(old) != len(new) or any(a.untyped_storage()._cdata in taken for a in old):
        return False
    if any((a.shape, a.stride(), a.dtype, a.device) != (b.shape, b.stride(), b.dtype, b.device)
           for a, b in zip(old, new, strict=True)):  # fmt: skip
        return False
    for a, b in zip(old, new, strict=True):
        a.copy_(b)
    return True
