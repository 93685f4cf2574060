"""Builds a model without data and traces what it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from vitbench.models import foreign, spec_of
from vitbench.ops.bundle import EAGER
from vitbench.predict import operators
from vitbench.predict.kernels import kernels
from vitbench.predict.setting import Answer, Setting
from vitbench.predict.table import compact
from vitbench.trace.precision import AUTOCAST, TORCH_DTYPES
from vitbench.trace.skeleton import Unwritten
from vitbench.variant import PUBLISHED


def find(setting: Setting) -> Answer:
    """What a setting runs, or an answer that says why that is not known."""
    try:
        return _traced(setting, _built(setting))
    except Exception as error:
        return Answer(reason=" ".join(str(error).split())[:300] or type(error).__name__)


def _built(setting: Setting) -> nn.Module:
    """On the CPU, where every constructor works; its weights are memory that nobody has written to."""
    spec = spec_of(setting.model, replace(PUBLISHED, reparam=setting.reparam))
    with _fast_norm(setting.fast_norm), Unwritten():
        classes = spec.num_classes if setting.num_classes is None else setting.num_classes
        return spec.build(EAGER, setting.resolution, classes)


def _traced(setting: Setting, model: nn.Module) -> Answer:
    dtype = TORCH_DTYPES[setting.dtype] if setting.dtype in ("bf16", "fp16") else None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    family = type(model).__module__.rpartition(".")[2]
    found = operators.trace(model, setting.resolution, setting.layout, AUTOCAST.get(setting.dtype), dtype)
    return Answer(compact(kernels(found.calls)), parameters, family, found.memory)


@contextlib.contextmanager
def _fast_norm(enabled: bool) -> Iterator[None]:
    """timm's switch, which its layers read when they are made."""
    if not enabled:
        yield
        return
    foreign.load("timm")
    from timm.layers.fast_norm import is_fast_norm, set_fast_norm

    before = is_fast_norm()
    set_fast_norm(True)
    try:
        yield
    finally:
        set_fast_norm(before)


__all__ = ["find"]
