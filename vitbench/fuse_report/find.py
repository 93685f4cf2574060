"""Builds a model without its weights, fuses it and counts what runs on kernels, then traces it unfused."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence

import vitkernels
from torch import nn

from vitbench.fuse_report.setting import Answer, Kernels, Setting
from vitbench.measure import flops
from vitbench.models import spec_of
from vitbench.ops.bundle import EAGER
from vitbench.predict import operators
from vitbench.predict.kernels import kernels as kernels_of
from vitbench.predict.table import compact
from vitbench.trace.precision import AUTOCAST
from vitbench.trace.skeleton import Unwritten


def find(setting: Setting) -> Answer:
    """What `fuse` does to a setting's model, or an answer that says why that is not known."""
    try:
        return _fused(setting)
    except Exception as error:  # of a library's own code
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Answer(reason=f"{type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": "))
    finally:
        gc.collect()


def _fused(setting: Setting) -> Answer:
    spec = spec_of(setting.model)
    with Unwritten():
        model = spec.build(EAGER, setting.resolution, spec.num_classes)
    gmacs = flops.count(model, setting.resolution).gmacs
    report = vitkernels.fuse(model)
    left = gmacs
    if report.swapped:  # what kernels do besides, such as taps of zero, is none of the model's
        counted = flops.count(model, setting.resolution)
        left = counted.gmacs - counted.kernel_gmacs
    kernels, within = _unfused(model, setting, [one.name for one in report.swapped])
    return Answer(
        len(report.swapped),
        _by_kind([one.class_name for one in report.swapped]),
        len(report.left),
        _by_kind([f"{one.class_name}: {one.text}" for one in report.left]),
        gmacs,
        gmacs - left,
        kernels=kernels,
        within=within,
    )


def _unfused(model: nn.Module, setting: Setting, served: Sequence[str]) -> tuple[Kernels, Kernels]:
    """What the model starts without our kernels, and what of it in the modules that are served; the model is spent."""
    vitkernels.unfuse(model)
    modules = [model.get_submodule(name) for name in served]
    try:
        found = operators.trace(model, setting.resolution, autocast=AUTOCAST["amp"], within=modules)
    except Exception:  # of a library's own code: only the share of time is not known then
        return (), ()
    return compact(kernels_of(found.calls)), compact(kernels_of(found.within))


def _by_kind(names: Sequence[str]) -> str:
    return "; ".join(f"{count} {name}" for name, count in Counter(names).most_common())


__all__ = ["find"]
