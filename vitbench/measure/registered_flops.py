"""Handles by which fvcore counts custom operators that have registered a formula with torch's FlopCounterMode.

Such an operator (all of vitkernels', forward and backward) says once what it computes, and both counters know it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fvcore.nn import jit_handles
from torch.utils.flop_counter import flop_registry

Macs = Callable[[Sequence[Any], Sequence[Any]], int]


def registered_macs() -> dict[str, Macs]:
    """Multiply-accumulates of a traced call, by the operator's name there ("vitkernels::bias_attention_fwd").

    PyTorch's own operators are left out.
    """
    found = {}
    for packet, formula in flop_registry.items():
        space, _, name = str(packet).partition(".")
        if space != "aten":
            found[f"{space}::{name}"] = _macs(formula)
    return found


def _macs(formula: Callable[..., int]) -> Macs:
    def macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        results = [jit_handles.get_shape(value) for value in outputs]
        shapes = results[0] if len(results) == 1 else results
        # A formula takes shapes as well as tensors, which it replaces by their shapes.
        return formula(*(_argument(value) for value in inputs), out_val=shapes) // 2

    return macs


def _argument(value: Any) -> Any:
    """A traced argument as a formula wants it: a tensor's shape, a list, a number, or None."""
    if value.type().kind() == "TensorType":
        return jit_handles.get_shape(value)
    if value.node().kind() == "prim::ListConstruct":
        return [_argument(item) for item in value.node().inputs()]
    return value.toIValue()


__all__ = ["registered_macs"]
