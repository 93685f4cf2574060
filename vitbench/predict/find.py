"""Builds a model without data and traces what it runs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from vitbench.models import foreign, spec_of
from vitbench.models.spec import ModelSpec
from vitbench.models.variants import of_theirs
from vitbench.ops.bundle import EAGER
from vitbench.predict import operators
from vitbench.predict.kernels import kernels
from vitbench.predict.setting import Answer, Setting
from vitbench.predict.table import compact
from vitbench.trace.precision import AUTOCAST, TORCH_DTYPES
from vitbench.variant import PUBLISHED


def find(setting: Setting) -> Answer:
    """What a setting runs, or an answer that says why that is not known."""
    reason = ""
    for build in (_without_data, _with_data):
        try:
            return _traced(setting, build(setting))
        except Exception as error:
            reason = reason or " ".join(str(error).split())[:300] or type(error).__name__
        finally:
            gc.collect()
    return Answer(reason=reason)


def _traced(setting: Setting, model: nn.Module) -> Answer:
    model = model.to(TORCH_DTYPES[setting.dtype]) if setting.dtype in ("bf16", "fp16") else model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    family = type(model).__module__.rpartition(".")[2]
    found = operators.trace(model, setting.resolution, setting.layout, AUTOCAST.get(setting.dtype))
    return Answer(compact(kernels(found.calls)), parameters, family, found.memory)


def _without_data(setting: Setting) -> nn.Module:
    """On the meta device, where random weights take no time; not every model can be made so, or merge its branches."""
    if setting.reparam:
        return _with_data(setting)
    with torch.device("meta"), _fast_norm(setting.fast_norm):
        if foreign.is_foreign(setting.model):
            library, _, name = setting.model.partition(":")
            return foreign.LIBRARIES[library].build(name, setting.resolution, _spec(setting).num_classes, PUBLISHED)
        return _spec(setting).build(EAGER, setting.resolution, _spec(setting).num_classes)


def _with_data(setting: Setting) -> nn.Module:
    with _fast_norm(setting.fast_norm):
        model = _spec(setting).build(EAGER, setting.resolution, _spec(setting).num_classes)
        return of_theirs(model.eval(), replace(PUBLISHED, reparam=True)) if setting.reparam else model


def _spec(setting: Setting) -> ModelSpec:
    return spec_of(setting.model, PUBLISHED)


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
