"""Tensors derived from parameters (folded weights, expanded biases), kept while those parameters stay as they are.

Torch counts most writes to a tensor, and those are seen at once: in-place operations, load_state_dict, foreach and
plain optimizers, `.to()`, another tensor in its place. It does not count the writes of fused optimizers, of captured
CUDA graphs and through `.data` or numpy. So everything kept is derived again after any optimizer's step, after a pass
that wants gradients of what something is derived from, and when `refresh` or `note_writes` say so; a batch norm's
statistics are held together with its count of batches, which every batch raises where torch counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

from vitkernels.runtime.device import autocast_dtype


@dataclass
class _Kept:
    """What the sources were like, their storages (so that none is freed and its address used again), and the result."""

    stamp: tuple[Any, ...] | None
    storages: list[torch.UntypedStorage]
    value: Any


#: By owner, and by name and key. Weak: it goes with its owner, and copying or pickling the owner leaves it behind.
_KEPT: Any = WeakIdKeyDictionary()
#: Results of one owner, such as those for several dtypes or sizes; a model with more derives again.
_MOST = 16
_PLAIN = (Tensor, nn.Parameter)
_uncounted_writes = 0
_watches_optimizers = False


def note_writes(*_: Any) -> None:
    """Parameters may have been written to uncounted: everything kept is derived again at its next use."""
    global _uncounted_writes
    if not torch.compiler.is_compiling():  # no side effect for torch.compile to trace and to guard on
        _uncounted_writes += 1


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a pass with these is to have gradients of them; if so, writes may follow that torch does not count."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if wanted:
        note_writes()
    return wanted


def refresh(model: nn.Module) -> None:
    """What is derived from a model's parameters and buffers is derived again at its next use.

    To be called after writes that nobody counts: through `.data` or numpy, by the replay of a captured CUDA graph, by
    a compiled fused optimizer. A CUDA graph of inference reads what was derived before its capture; one eager pass
    without gradients after this call renews that in place.
    """
    for owner in (*model.modules(), *model.parameters(), *model.buffers()):
        for kept in _KEPT.get(owner, {}).values():
            kept.stamp = None


def _outside_of_eager() -> bool:
    """Whether tensors are traced, faked, wrapped or watched just now."""
    return bool(torch._C._len_torch_dispatch_stack()) or torch._C._functorch.peek_interpreter_stack() is not None


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def derived(
    owner: object,
    name: str,
    make: Callable[..., Any],
    *sources: Tensor | None,
    key: tuple[Any, ...] = (),
    watch: tuple[Tensor | None, ...] = (),
) -> Any:
    """make(*sources), computed again only when a source may have changed since the last call, as the module says.

    Nothing is kept where gradients of the sources are wanted, for sources that are of a subclass of Tensor, in
    dispatch modes (fake tensors, counters) and function transforms, nor while torch.compile or torch.export trace:
    there `make` becomes part of the graph. Without gradients a result that is derived again is written over the old
    one, which a CUDA graph may read; a capture itself takes what is kept and keeps nothing.

    Args:
        owner: what the result lives as long as, such as the module or parameter it is derived from.
        name: tells apart several results of one owner.
        make: gives a tensor, or a tuple of tensors and None.
        key: what else the result depends on, such as a dtype; autocast is looked at anyway.
        watch: tensors that change whenever sources do.
    """
    if torch.compiler.is_compiling() or wants_grad(*sources):
        return make(*sources)
    given = [t for t in (*sources, *watch) if t is not None]
    if any(type(t) not in _PLAIN or t.is_inference() for t in given) or _outside_of_eager():
        return make(*sources)
    stamp = (_uncounted_writes, *((t._version, t.dtype, t.storage_offset(), t.stride()) for t in given))
    storages = [t.untyped_storage() for t in given]
    of_owner: dict[Any, _Kept] = _KEPT.setdefault(owner, {})
    in_graph = torch.is_grad_enabled()  # where autograd may save a result for the gradient of something else
    slot = (name, key, in_graph, autocast_dtype(given[0]) if given else None)
    kept = of_owner.get(slot)
    if kept is not None and kept.stamp == stamp and _same(kept.storages, storages):
        return kept.value
    if _capturing():
        return make(*sources)
    with torch.inference_mode(False), torch.no_grad():
        value = make(*sources)
        if kept is not None and not in_graph and _written_over(kept, value):
            value = kept.value
    _watch_optimizers()
    while len(of_owner) >= _MOST and kept is None:
        of_owner.pop(next(iter(of_owner)))
    of_owner[slot] = _Kept(stamp, storages, value)
    return value


def _same(storages: list[torch.UntypedStorage], others: list[torch.UntypedStorage]) -> bool:
    return all(a._cdata == b._cdata for a, b in zip(storages, others, strict=True))


def _written_over(kept: _Kept, value: Any) -> bool:
    """Puts new tensors into the memory of the old where they fit, unless that is a source's own."""
    old, new = (x if isinstance(x, tuple) else (x,) for x in (kept.value, value))
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if a is not None or b is not None]
    taken = {storage._cdata for storage in kept.storages}
    for a, b in pairs:
        if a is None or b is None or a.untyped_storage()._cdata in taken:
            return False
        if (a.shape, a.stride(), a.dtype, a.device) != (b.shape, b.stride(), b.dtype, b.device):
            return False
    for a, b in pairs:
        a.copy_(b)
    return True


def _watch_optimizers() -> None:
    global _watches_optimizers
    if not _watches_optimizers:
        register_optimizer_step_post_hook(note_writes)
        _watches_optimizers = True
