"""Multiply-accumulates, activations and parameters of a model, counted twice without computing anything.

Convention: only convolutions and matrix products count, attention's two products and the matrices of recurrent
layers included, fused or not; bias, normalisation, activation, softmax, pooling and resizing do not. One
multiply-accumulate is two FLOPs.

The model runs once on tensors without data. Of every operator that it calls (linear, einsum, lstm) our own rule counts
the arguments' shapes (`mac_rules`), and torch's formulas, those of FlopCounterMode, count the products that the
operator is made of (mm, bmm, convolution). Where the two differ the larger counts and the difference is told: a counter
errs by not knowing an operator. Custom operators count by the formula that they register with torch.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitbench.catalog import Resolution
from vitbench.measure.mac_rules import RULES, activations, multiplies
from vitbench.trace import hollow
from vitbench.trace.skeleton import is_composite, run_fake


@dataclass(frozen=True)
class FlopCount:
    """Of one image: `gmacs` in 10^9 multiply-accumulates (1 MAC = 2 FLOPs), `macts` in 10^6 output elements
    of convolutions and matrix products, `params_m` in 10^6 parameters without buffers. `uncounted_ops`
    names operators that multiply and are in none of these numbers, `differences` those that the two counters
    count differently. `kernel_gmacs` are those of `gmacs` that operators of vitkernels compute.
    """

    gmacs: float
    macts: float
    params_m: float
    uncounted_ops: tuple[str, ...]
    differences: tuple[str, ...] = ()
    kernel_gmacs: float = 0.0


def count(model: nn.Module, resolution: Resolution, in_chans: int = 3) -> FlopCount:
    """Counts one image of [in_chans, *resolution] in evaluation mode; `model` is read, never run or changed.

    A compiled model is counted as the eager model inside it.
    """

    def counted(skeleton: nn.Module, x: Tensor) -> _Counting:
        counting = _Counting(hollow.run if hollow.is_hollow(x) else _call)
        with _whole_operators(), torch.inference_mode(), counting:
            skeleton.eval()(x)
        return counting

    eager = getattr(model, "_orig_mod", model)
    found = run_fake(eager, (1, in_chans, *resolution), counted)
    parameters = sum(parameter.numel() for parameter in eager.parameters())
    uncounted = tuple(sorted(found.uncounted))
    return FlopCount(
        found.macs() / 1e9,
        found.activations / 1e6,
        parameters / 1e6,
        uncounted,
        found.differences(),
        found.macs("vitkernels::") / 1e9,
    )


@contextlib.contextmanager
def _whole_operators() -> Iterator[None]:
    """Keeps torch from fused operators of the CPU, which no formula knows: what they fuse is seen instead."""
    fast, one_dnn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags would set TF32 too, and warn
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(one_dnn)


def _call(op: Any, args: Any, kwargs: Any) -> Any:
    return op(*args, **kwargs)


class _Counting(TorchDispatchMode):
    """Counts operators as the model calls them; those that they are made of belong to the call around them.

    Args:
        run: gives what an operator gives for its arguments.
    """

    def __init__(self, run: Callable[[Any, Any, Any], Any] = _call) -> None:
        super().__init__()
        self._run = run
        self.activations = 0
        self.uncounted: set[str] = set()
        self._by_rule: dict[str, int] = defaultdict(int)
        self._by_torch: dict[str, int] = defaultdict(int)
        self._known_to_torch: dict[str, bool] = defaultdict(lambda: True)
        self._called: Any = None  # the outermost operator
        self._ruled = False  # whether a rule has counted an operator around this one

    def macs(self, namespace: str = "") -> int:
        """Of all operators, or of those whose names begin so."""
        counted = {*self._by_rule, *self._by_torch}
        return sum(max(self._by_rule[op], self._by_torch[op]) for op in counted if op.startswith(namespace))

    def differences(self) -> tuple[str, ...]:
        """A phrase for each operator of which both counters know all, and differ."""
        return tuple(
            f"of {op} its shapes give {self._by_rule[op]:,} MACs, torch's formulas {self._by_torch[op]:,}: "
            "the larger counts"
            for op in sorted({*self._by_rule, *self._by_torch})
            if self._known_to_torch[op] and self._by_rule[op] != self._by_torch[op]
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions about a tensor, the greater part of all calls
            return func(*args, **kwargs)
        outermost, self._called = self._called, self._called or func
        rule = None if self._ruled else RULES.get(func.overloadpacket)
        self._ruled |= rule is not None
        try:
            if is_composite(func):
                with self:
                    out = func.decompose(*args, **kwargs)
            else:
                out = self._run(func, args, kwargs)
                self._count_by_torch(func, args, kwargs, out)
            if rule is not None:
                names = (argument.name for argument in func._schema.arguments)
                given = dict(zip(names, args, strict=False)) | kwargs
                first = out if isinstance(out, Tensor) else out[0]
                self._by_rule[_name(self._called)] += rule(given, first)
                self.activations += activations(func.overloadpacket, given, first)
        finally:
            self._called = outermost
            self._ruled &= rule is None
        return out

    def _count_by_torch(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = _name(self._called)
        if formula := flop_registry.get(func.overloadpacket):
            macs = formula(*args, **kwargs, out_val=out) // 2
            self._by_torch[name] += macs
            if not self._ruled:
                self._by_rule[name] += macs  # a custom operator: its own formula is all that is known
                first = out if isinstance(out, Tensor) else out[0]
                self.activations += first.numel() if macs else 0
        elif multiplies(func):
            self._known_to_torch[name] = False
            if not self._ruled:
                self.uncounted.add(name)


def _name(op: Any) -> str:
    return str(op.name()).partition(".")[0]


__all__ = ["FlopCount", "count"]
