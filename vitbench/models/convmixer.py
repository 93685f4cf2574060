"""ConvMixer (arXiv:2201.09792): patches, then depthwise and pointwise convolutions at one resolution.

Every convolution is followed by its activation and then by BatchNorm, in that order; only the depthwise one has
a shortcut. Parameter names and shapes are timm's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops


@dataclass(frozen=True)
class ConvMixerConfig:
    """Sizes of one ConvMixer; `kernel` (odd) of the depthwise convolutions, `patch` in pixels."""

    width: int
    depth: int
    kernel: int
    patch: int
    activation: Literal["gelu", "relu"] = "gelu"

    def activate(self) -> nn.Module:
        return nn.GELU() if self.activation == "gelu" else nn.ReLU()


class SpatialMixing(nn.Module):
    """x + norm(act(depthwise(x))) over [B, width, h, w], zero-padded to keep its size."""

    def __init__(self, ops: Ops, config: ConvMixerConfig) -> None:
        super().__init__()
        self.ops, self.activation = ops, config.activation
        width = config.width
        conv = nn.Conv2d(width, width, config.kernel, padding=config.kernel // 2, groups=width)
        self.fn = nn.Sequential(conv, config.activate(), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        conv, _, norm = self.fn
        return self.ops.conv_act_norm(x, conv, norm, self.activation, "post")


class Block(nn.Sequential):
    """Spatial mixing, then norm(act(pointwise(x))) over [B, width, h, w]."""

    def __init__(self, ops: Ops, config: ConvMixerConfig) -> None:
        width = config.width
        pointwise = nn.Conv2d(width, width, 1)
        super().__init__(SpatialMixing(ops, config), pointwise, config.activate(), nn.BatchNorm2d(width))
        self.ops, self.activation = ops, config.activation

    def forward(self, x: Tensor) -> Tensor:
        mixing, pointwise, _, norm = self
        return self.ops.conv_act_norm(mixing(x), pointwise, norm, self.activation)


class ConvMixer(nn.Module):
    """Images [B, 3, H, W] to logits [B, num_classes]; pixels beyond the last whole patch are left out.

    Everything starts as torch's own layers do.
    """

    def __init__(self, ops: Ops, config: ConvMixerConfig, num_classes: int) -> None:
        super().__init__()
        self.ops, self.activation, width = ops, config.activation, config.width
        patches = nn.Conv2d(3, width, config.patch, config.patch)
        self.stem = nn.Sequential(patches, config.activate(), nn.BatchNorm2d(width))
        self.blocks = nn.Sequential(*(Block(ops, config) for _ in range(config.depth)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        patches, _, norm = self.stem
        x = self.ops.conv_act_norm(x, patches, norm, self.activation)
        return self.head(self.blocks(x).mean(dim=(2, 3)))


CONFIGS: dict[str, ConvMixerConfig] = {
    "convmixer_1536_20": ConvMixerConfig(1536, 20, kernel=9, patch=7),
    "convmixer_1024_20_ks9_p14": ConvMixerConfig(1024, 20, kernel=9, patch=14),
    # Its published weights were trained with ReLU.
    "convmixer_768_32": ConvMixerConfig(768, 32, kernel=7, patch=7, activation="relu"),
}


def _build(config: ConvMixerConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    if any(side < 1 or side % config.patch for side in resolution):
        raise ValueError(f"resolution {format_resolution(resolution)} is not a positive multiple of {config.patch} px")
    return ConvMixer(ops, config, num_classes)


MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(partial(_build, config), (224, 224), Preprocessing(crop_pct=0.96))
    for name, config in CONFIGS.items()
}

__all__ = ["CONFIGS", "MODELS", "ConvMixer", "ConvMixerConfig"]
