"""Tensors derived from parameters (folded weights, expanded biases), kept while those parameters stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

#: By owner and name: what the tensors were like, their storages (so that none is freed and its address used again),
#: and what was derived from them. Weak: it goes with its owner, and copying or pickling the owner leaves it behind.
_KEPT: Any = WeakIdKeyDictionary()


def derived(
    owner: object, name: str, make: Callable[..., Any], *sources: Tensor | None, key: tuple[Any, ...] = ()
) -> Any:
    """make(*sources), computed again only when a source has changed since the last call.

    A change is one that torch counts: in-place operations, load_state_dict, an optimizer's step, `.to()`, another
    tensor in its place; not writing through `.data` or numpy. Nothing is kept where gradients of the sources are
    wanted, nor while torch.compile or torch.export trace: there `make` becomes part of the graph.

    Args:
        owner: what the result lives as long as, such as the module or parameter it is derived from.
        name: tells apart several results of one owner.
        key: what else the result depends on, such as a dtype.
    """
    given = [t for t in sources if t is not None]
    wants_grad = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if wants_grad or torch.compiler.is_compiling() or any(t.is_inference() for t in given):
        return make(*sources)
    stamp = (*key, *((t._version, t.dtype, t.storage_offset(), t.stride()) for t in given))
    storages = [t.untyped_storage() for t in given]
    kept = _KEPT.setdefault(owner, {})
    if name in kept:
        old_stamp, old_storages, value = kept[name]
        if stamp == old_stamp and all(a._cdata == b._cdata for a, b in zip(storages, old_storages, strict=True)):
            return value
    with torch.inference_mode(False), torch.no_grad():
        value = make(*sources)
    kept[name] = (stamp, storages, value)
    return value
