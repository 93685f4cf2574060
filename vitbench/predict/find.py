"""Builds a model without data and traces what it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from vitbench.models import foreign, spec_of
from vitbench.ops.bundle import EAGER
from vitbench.predict import fusion, operators
from vitbench.predict.kernels import kernels
from vitbench.predict.setting import Answer, Setting
from vitbench.predict.table import compact
from vitbench.trace import compiler
from vitbench.trace.precision import AUTOCAST, TORCH_DTYPES
from vitbench.trace.skeleton import Unwritten
from vitbench.variant import PUBLISHED


def find(setting: Setting) -> Answer:
    """What a setting runs, or an answer that says why that is not known."""
    try:
        return compiler.retried(lambda: _traced(setting))
    except Exception as error:
        return Answer(reason=" ".join(str(error).split())[:300] or type(error).__name__)


def _built(setting: Setting) -> nn.Module:
    """On the CPU, where every constructor works; its weights are memory that nobody has written to."""
    spec = spec_of(setting.model, replace(PUBLISHED, reparam=setting.reparam))
    with _fast_norm(setting.fast_norm), Unwritten():
        classes = spec.num_classes if setting.num_classes is None else setting.num_classes
        return spec.build(EAGER, setting.resolution, classes)


def _traced(setting: Setting) -> Answer:
    model = _built(setting)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    family = type(model).__module__.rpartition(".")[2]
    found = _trace(setting, model, setting.layout)
    if setting.impl == "eager":
        return Answer(compact(kernels(found.calls)), parameters, family, found.memory)
    layout = fusion.layout(found.steps)
    steps = found.steps if layout in ("nchw", setting.layout) else _trace(setting, _built(setting), layout).steps
    return Answer(compact(fusion.kernels(steps)), parameters, family, found.memory)


def _trace(setting: Setting, model: nn.Module, layout: str) -> operators.Trace:
    dtype = TORCH_DTYPES[setting.dtype] if setting.dtype in ("bf16", "fp16") else None
    return operators.trace(model, setting.resolution, layout, AUTOCAST.get(setting.dtype), dtype)


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
