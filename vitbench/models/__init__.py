"""Every model by name, and the one way to make one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from vitbench.catalog import Resolution, catalog, format_resolution, parse_resolution
from vitbench.errors import InputError, nearest
from vitbench.models import (
    cmt,
    coatnet,
    convit,
    convmixer,
    detr,
    efficient_vit,
    efficientnet,
    foreign,
    resnet,
    tnt,
    tutorial,
    variants,
    vit,
    yolos,
)
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.models.undrawn import Undrawn
from vitbench.models.weights import load_weights
from vitbench.ops.bundle import Ops
from vitbench.ops.implementations import ops_for
from vitbench.ops.names import IMPLS, WHOLLY_COMPILED
from vitbench.variant import PUBLISHED, Variant


def _merge(*families: dict[str, ModelSpec]) -> dict[str, ModelSpec]:
    merged: dict[str, ModelSpec] = {}
    for family in families:
        if twice := merged.keys() & family.keys():
            raise ValueError(f"models named twice: {', '.join(sorted(twice))}")
        merged |= family
    return merged


MODELS: dict[str, ModelSpec] = _merge(
    vit.MODELS,
    resnet.MODELS,
    cmt.MODELS,
    tnt.MODELS,
    convit.MODELS,
    coatnet.MODELS,
    tutorial.MODELS,
    convmixer.MODELS,
    efficientnet.MODELS,
    efficient_vit.MODELS,
    detr.MODELS,
    yolos.MODELS,
)


def spec_of(name: str, variant: Variant = PUBLISHED) -> ModelSpec:
    """The builder of a model: a key of MODELS, or another library's such as `timm:convnext_tiny`.

    It raises Unsupported where the model has no such form as `variant` asks for.

    Raises: InputError naming the nearest models when there is none, or the library is missing.
    """
    if foreign.is_foreign(name):
        return foreign.spec(name, variant)
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}: {nearest(name, MODELS)}")
    published = MODELS[name]
    if variant == PUBLISHED:
        return published

    def build(ops: Ops, resolution: Resolution, classes: int) -> nn.Module:
        return variants.of_ours(published.build(ops, resolution, classes), variant)

    return replace(published, build=build, num_classes=variant.num_classes or published.num_classes)


def create_model(
    name: str,
    impl: str = "eager",
    resolution: int | str | Resolution | None = None,
    num_classes: int | None = None,
    weights: str | Path | None = None,
    weights_resolution: Resolution | None = None,
    variant: Variant = PUBLISHED,
) -> nn.Module:
    """A model in training mode, fp32, on torch's default device.

    Args:
        name: a key of MODELS, or LIBRARY:NAME with timm, torchvision or transformers as the library, whose models lie
            on the CPU and have no impl "sdpa" or "flex".
        impl: "eager", "sdpa", "flex", "fused" (kernels of vitkernels), or "compile", "max-autotune" and "fused+compile"
            (the eager model, again, and the fused model through torch.compile).
        resolution: 224, "800x1066" or (height, width) in pixels; default the model's own.
        num_classes: outputs of the classifier, or classes that a detector knows; default the published model's.
        weights: a .safetensors file, loaded strictly; tables that depend on the resolution are resampled.
        weights_resolution: (height, width) that the file was saved at; by default told from its tables.
        variant: another form than the published one; its compile_mode is for the implementations that compile.

    Raises: InputError on an unknown name or implementation, a model that no fused kernel serves, a resolution the
        architecture cannot take, or weights that are unreadable or belong to another network; Unsupported where the
        model has no such variant.
    """
    spec = spec_of(name, variant)
    if impl not in IMPLS:
        raise InputError(f"unknown implementation {impl!r}: {nearest(impl, IMPLS)}")
    if resolution is None:
        resolution = spec.resolution
    elif not isinstance(resolution, tuple):
        resolution = parse_resolution(str(resolution))
    try:
        if why := unserved(name, impl, resolution, variant):
            raise InputError(f"{name} has no {impl.partition('+')[0]} implementation: {why}")
        with nullcontext() if weights is None else Undrawn():
            model = spec.build(ops_for(impl), resolution, spec.num_classes if num_classes is None else num_classes)
    except ValueError as error:
        raise InputError(f"{name} at {format_resolution(resolution)}: {error}") from error
    if weights is not None:
        load_weights(model, name, Path(weights), weights_resolution)
    return compiled(model, impl, dynamic=None, mode=variant.compile_mode) if impl in WHOLLY_COMPILED else model


def compiled(model: nn.Module, impl: str, dynamic: bool | None = False, mode: str = "") -> nn.Module:
    """The model as an implementation of WHOLLY_COMPILED compiles it, at its first call.

    "max-autotune" times what the compiler can choose from, on the device; CUDA graphs are left to `--graphs`. A mode
    of torch.compile's is for the other implementations.
    """
    mode = "max-autotune-no-cudagraphs" if impl == "max-autotune" else mode or "default"
    return cast(nn.Module, torch.compile(model, dynamic=dynamic, mode=mode))


def unserved(
    name: str, impl: str = "fused", resolution: Resolution | None = None, variant: Variant = PUBLISHED
) -> str | None:
    """Why a model has no implementation `impl` (that no kernel of vitkernels serves it); None where it has one.

    Raises: ValueError when another library's model cannot be made at the resolution, default its own.
    """
    if not impl.startswith("fused"):
        return foreign.unserved(name, impl) if foreign.is_foreign(name) else None
    try:
        from vitbench.ops.fused import UNSERVED
    except ModuleNotFoundError as error:
        return f"it needs the package {error.name}, which is not installed"
    if foreign.is_foreign(name):
        return foreign.unserved(name, impl, resolution, variant)
    return UNSERVED.get(catalog()[name].family)


__all__ = ["MODELS", "ModelSpec", "Preprocessing", "compiled", "create_model", "load_weights", "spec_of", "unserved"]
