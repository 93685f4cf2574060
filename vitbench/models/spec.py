"""What a family file says about each of its models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from vitbench.catalog import Resolution
from vitbench.ops.bundle import Ops


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes the model's input.

    The shorter side is resized to resolution / crop_pct with `interpolation`, the centre is cropped,
    and each RGB channel in [0, 1] becomes (value - mean) / std.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"


@dataclass(frozen=True)
class ModelSpec:
    """One named model of a family.

    build(ops, resolution, num_classes) returns the module, randomly initialised as the family's
    authors do. A module whose parameters depend on the resolution has a method
    `resize_state_dict(state, source=None) -> state` that resamples them, made for the resolution
    `source`, to the module's own.
    What it returns, a tensor of logits or a detector's dictionary, `vitbench.models.outputs` knows how to use.

    num_classes: of the published model.
    """

    build: Callable[[Ops, Resolution, int], nn.Module]
    resolution: Resolution
    preprocessing: Preprocessing
    num_classes: int = 1000
