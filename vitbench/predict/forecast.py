"""Images a second of a traced model on a card, with an interval and what it is made of. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from vitbench.cards import Card
from vitbench.memory.reserve import CONTEXT_MIB
from vitbench.memory.setting import MIB, workspace_bytes
from vitbench.predict import calibration
from vitbench.predict.calibration import MANY, Anchored
from vitbench.predict.cost import HBM, seconds
from vitbench.predict.setting import Answer, Setting
from vitbench.predict.table import KINDS, RARE, Column, Kernel, Table

PARTS = {
    "convolutions": tuple(kind for kind in KINDS if "convolution" in kind or "depthwise" in kind),
    "products": tuple(kind for kind in KINDS if "product" in kind),
    "attention": tuple(kind for kind in KINDS if "attention" in kind),
}
#: Below this batch the host starts kernels more slowly than a GPU runs them.
SMALL = 32
#: Other dtypes are not among the published figures.
_VALIDATED_DTYPES = ("amp", "amp-fp16")


@dataclass(frozen=True)
class Forecast:
    """Of a model on a card; between `low` and `high` lie four of five models that were held out.

    Attributes:
        img_per_s, low, high: images a second.
        ms: of a batch.
        convolutions, products, attention, memory_bound: shares of the time.
        rare: share of the time in kernels that few published figures speak of.
        memory_gib: tensors at the peak, cuBLAS's workspace and CUDA's context.
        fits: whether the card has so much.
        note: what of this was not validated.
    """

    img_per_s: float
    low: float
    high: float
    ms: float
    convolutions: float
    products: float
    attention: float
    memory_bound: float
    rare: float
    memory_gib: float
    fits: bool
    note: str


def kernel_seconds(
    kernels: Sequence[tuple[Kernel, int]],
    card: Card,
    batch: int,
    factors: Anchored | None = None,
    impl: str = "eager",
) -> list[float]:
    """Of all launches of each kernel; `factors`: measured ones of arithmetic and bandwidth instead of the fitted."""
    return _seconds(Table.of([kernels]), card, batch, factors, impl)


def _seconds(table: Table, card: Card, batch: int, factors: Anchored | None, impl: str) -> list[float]:
    fitted = calibration.fitted(impl)
    device = fitted.device(card)
    if factors is not None:
        device = device.sustained(factors.arithmetic, factors.bandwidth)
    times: Column = seconds(table, fitted.parameters, device, np.array([float(batch)])) * table.count
    return [float(value) for value in times]


def forecast(answer: Answer, setting: Setting, card: Card, batch: int, factors: Anchored | None = None) -> Forecast:
    """Of what `ask` answered, where it has a trace."""
    times = _seconds(answer.table, card, batch, factors, setting.impl)
    total = sum(times)
    of_kind = dict.fromkeys(KINDS, 0.0)
    for (kernel, _), time in zip(answer.kernels, times, strict=True):
        of_kind[kernel.kind] += time / total
    shares = {part: sum(of_kind[kind] for kind in kinds) for part, kinds in PARTS.items()}
    rare = sum(of_kind[kind] for kind in RARE)
    families = factors.families if factors else 0
    off = calibration.expected(card.name, setting.layout, rare, setting.impl, families)
    bytes_ = answer.peak_bytes(batch) + workspace_bytes(card.arch, "infer")
    memory = bytes_ / 2**30 + CONTEXT_MIB * MIB / 2**30
    rate = batch / total
    return Forecast(
        img_per_s=rate,
        low=rate * exp(-off.high),
        high=rate * exp(-off.low),
        ms=1e3 * total,
        **shares,
        memory_bound=1 - sum(shares.values()),
        rare=rare,
        memory_gib=memory,
        fits=memory <= card.usable_gib,
        note="; ".join(_notes(setting, card, batch, rare)),
    )


def _notes(setting: Setting, card: Card, batch: int, rare: float) -> list[str]:
    said = []
    if card.arch in HBM:
        said.append("cards with HBM were not validated")
    if setting.dtype not in _VALIDATED_DTYPES:
        said.append(f"{setting.dtype} was not validated")
    if setting.impl == "compile":
        said.append("memory is that of eager inference")
        if setting.layout == "nhwc":
            said.append("compiled nhwc was not validated")
    if batch < SMALL:
        said.append(f"below batch {SMALL} the host's time for launches counts, which is not predicted")
    if rare >= MANY:
        said.append(f"{rare:.0%} of the time in rare kernels")
    return said


__all__ = ["PARTS", "SMALL", "Forecast", "forecast", "kernel_seconds"]
