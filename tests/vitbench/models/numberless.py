"""Models of the catalog without their numbers, each built and counted once for all tests that ask about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from vitbench.measure import flops
from vitbench.models import MODELS, outputs
from vitbench.ops.bundle import EAGER
from vitbench.trace.skeleton import Unwritten

Shapes = dict[str, torch.Size]


@contextmanager
def numberless() -> Iterator[None]:
    """What is built meanwhile has no numbers, and takes no time to make them up."""
    with torch.device("meta"), Unwritten():
        yield


@cache
def published(name: str) -> nn.Module:
    """A model of the catalog in evaluation, shared: to be read only."""
    with numberless():
        return MODELS[name].build(EAGER, MODELS[name].resolution, MODELS[name].num_classes).eval()


@cache
def count(name: str) -> tuple[flops.FlopCount, list[torch.Size]]:
    """A count of which both counters agree, and the shapes of what one image gives."""
    shapes: list[torch.Size] = []
    told = published(name).register_forward_hook(
        lambda model, given, output: shapes.extend(tensor.shape for tensor in outputs.tensors(output))
    )
    try:
        found = flops.count(published(name), MODELS[name].resolution)
    finally:
        told.remove()
    assert found.differences == found.uncounted_ops == ()
    return found, shapes


def shapes(model: nn.Module) -> Shapes:
    return {key: tensor.shape for key, tensor in model.state_dict().items()}
