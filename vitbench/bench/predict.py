"""What can be said of a case without running it: parameters, MACs, peak memory. For plans and for rows."""

from __future__ import annotations

from functools import cache, lru_cache, partial

import torch
from torch import nn

from vitbench.bench import isolation
from vitbench.bench.build import TORCH_DTYPES, autocast_dtype
from vitbench.bench.plan import Case
from vitbench.catalog import Resolution
from vitbench.measure import flops, memory
from vitbench.measure.flops import FlopCount
from vitbench.models import spec_of, unserved
from vitbench.ops.bundle import EAGER, Ops
from vitbench.ops.implementations import ops_for
from vitbench.ops.names import COMPILED


def _build(model: str, resolution: Resolution, ops: Ops) -> nn.Module:
    spec = spec_of(model)
    return spec.build(ops, resolution, spec.num_classes)


@cache
def count(model: str, resolution: Resolution) -> FlopCount:
    """Of the eager model at batch 1: the same for every implementation of a case."""
    with torch.device("meta"):
        built = _build(model, resolution, EAGER)
    try:
        return flops.count(built, resolution)
    finally:
        isolation.forget()


@lru_cache(maxsize=4096)
def memory_mib(case: Case) -> float | None:
    """Predicted peak memory in MiB, for the allocator of the case's device; None for compiled
    implementations, whose buffers only the compiler knows, and for those that the model does not have."""
    if case.impl in COMPILED or unserved(case.model, case.impl, case.resolution):
        return None
    try:
        estimate = memory.predict(
            partial(_build, case.model, case.resolution, ops_for(case.impl)),
            case.resolution,
            case.batch,
            "train" if case.mode == "train" else "infer",
            TORCH_DTYPES[case.dtype],
            allocator="cpu" if case.device == "cpu" else "cuda",
            channels_last=case.layout == "nhwc",
            autocast=autocast_dtype(case),
        )
    finally:
        isolation.forget()
    return estimate.peak_mib
