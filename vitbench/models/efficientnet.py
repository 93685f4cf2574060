"""EfficientNet B0 to B7 (arXiv:1905.11946): inverted bottlenecks with squeeze-and-excitation at several scales.

Two releases hold the same network. timm's `efficientnet_b*` pads symmetrically and has a BatchNorm epsilon of
1e-5; the TensorFlow reference, which the port in efficient_vit.py follows, pads as SAME and has 1e-3.
A `Release` says which, and what its layers are called, so that both releases' weights load into one block.
The models of this file are timm's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.drop_path import DropPath
from vitbench.models.hybrid_resnet import pad_same
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops


@dataclass(frozen=True)
class Stage:
    """Blocks of B0, of which the first has the stride; `width` is that of their output."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_WIDTH, HEAD_WIDTH = 32, 1280


@dataclass(frozen=True)
class EfficientNetConfig:
    """Factors on B0's widths and repeats; `dropout` (before the classifier) and `drop_path` act in training only."""

    width: float
    depth: float
    dropout: float
    drop_path: float = 0.2
    stages: tuple[Stage, ...] = STAGES

    def scale(self, width: int) -> int:
        """A width of B0 in this network: the nearest multiple of 8, but never under 90 % of the product."""
        wanted = width * self.width
        rounded = max(8, int(wanted + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * wanted else rounded + 8

    def repeat(self, blocks: int) -> int:
        return math.ceil(blocks * self.depth)


@dataclass(frozen=True)
class Names:
    """Attributes of a block's layers: (convolution, norm) of each part.

    squeeze: the submodule that holds `reduce` and `excite`; "" is the block itself.
    expansion: without a meaning in a block that does not expand.
    """

    depthwise: tuple[str, str]
    squeeze: str
    reduce: str
    excite: str
    projection: tuple[str, str]
    expansion: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Release:
    """What differs between the releases of one network: names, padding of strided convolutions, BatchNorm."""

    first: Names  # of blocks that do not expand
    other: Names
    same_padding: bool
    eps: float
    momentum: float

    def norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, eps=self.eps, momentum=self.momentum)


_TIMM_SE = ("se", "conv_reduce", "conv_expand")
TIMM = Release(
    first=Names(("conv_dw", "bn1"), *_TIMM_SE, ("conv_pw", "bn2")),
    other=Names(("conv_dw", "bn2"), *_TIMM_SE, ("conv_pwl", "bn3"), ("conv_pw", "bn1")),
    same_padding=False,
    eps=1e-5,
    momentum=0.1,
)


def conv(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


class MBConv(nn.Module):
    """Expand (1x1), mix (depthwise), squeeze and excite, project (1x1).

    [B, C, H, W] to [B, width, H / stride, W / stride], rounded up. The squeezed width is a quarter of the block's
    input. Shortcut, with stochastic depth, where shapes agree.
    """

    def __init__(self, ops: Ops, release: Release, in_channels: int, stage: Stage, drop_path: float) -> None:
        super().__init__()
        inner, squeezed = stage.expansion * in_channels, max(1, in_channels // 4)
        self.ops, self.stride, self.same_padding = ops, stage.stride, release.same_padding
        self.expands = stage.expansion > 1
        self.names = names = release.other if self.expands else release.first
        self.shortcut = stage.stride == 1 and in_channels == stage.width
        if self.expands:
            self._add(names.expansion, conv(in_channels, inner), release.norm(inner))
        depthwise = conv(inner, inner, stage.kernel, stage.stride, groups=inner)
        self._add(names.depthwise, depthwise, release.norm(inner))
        holder = nn.Module() if names.squeeze else self
        if names.squeeze:
            self.add_module(names.squeeze, holder)
        holder.add_module(names.reduce, nn.Conv2d(inner, squeezed, 1))
        holder.add_module(names.excite, nn.Conv2d(squeezed, inner, 1))
        self._add(names.projection, conv(inner, stage.width), release.norm(stage.width))
        self.drop_path = DropPath(drop_path)

    def _add(self, names: tuple[str, str], layer: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        self.add_module(names[0], layer)
        self.add_module(names[1], norm)

    def _pair(self, names: tuple[str, str]) -> tuple[nn.Module, nn.Module]:
        return getattr(self, names[0]), getattr(self, names[1])

    def forward(self, x: Tensor) -> Tensor:
        y, padding = x, None
        if self.expands:
            y = self.ops.conv_norm_act(y, *self._pair(self.names.expansion), "silu")
        depthwise, norm = self._pair(self.names.depthwise)
        if self.same_padding and self.stride > 1:
            assert isinstance(depthwise, nn.Conv2d)
            y, padding = pad_same(y, depthwise.kernel_size[0], self.stride), 0
        y = self.ops.conv_norm_act(y, depthwise, norm, "silu", padding=padding)
        holder = getattr(self, self.names.squeeze) if self.names.squeeze else self
        gate = getattr(holder, self.names.reduce)(y.mean(dim=(2, 3), keepdim=True))
        y = y * getattr(holder, self.names.excite)(F.silu(gate, inplace=True)).sigmoid()
        y = self.ops.conv_norm_act(y, *self._pair(self.names.projection))
        return x + self.drop_path(y) if self.shortcut else y


def make_stages(ops: Ops, config: EfficientNetConfig, release: Release) -> list[list[MBConv]]:
    """The blocks of every stage; block i of n is dropped at i / n of the configured rate."""
    total = sum(config.repeat(stage.repeats) for stage in config.stages)
    channels = config.scale(STEM_WIDTH)
    stages: list[list[MBConv]] = []
    index = 0
    for stage in config.stages:
        width = config.scale(stage.width)
        stages.append([])
        for repeat in range(config.repeat(stage.repeats)):
            shape = Stage(1, stage.kernel, 1 if repeat else stage.stride, stage.expansion, width)
            stages[-1].append(MBConv(ops, release, channels, shape, config.drop_path * index / total))
            channels = width
            index += 1
    return stages


class EfficientNet(nn.Module):
    """Images [B, 3, H, W] of any size to logits [B, num_classes]."""

    def __init__(self, ops: Ops, config: EfficientNetConfig, num_classes: int) -> None:
        super().__init__()
        self.ops = ops
        stem, head = config.scale(STEM_WIDTH), config.scale(HEAD_WIDTH)
        self.conv_stem = conv(3, stem, 3, stride=2)
        self.bn1 = TIMM.norm(stem)
        self.blocks = nn.Sequential(*(nn.Sequential(*stage) for stage in make_stages(ops, config, TIMM)))
        self.conv_head = conv(config.scale(config.stages[-1].width), head)
        self.bn2 = TIMM.norm(head)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(head, num_classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.ops.conv_norm_act(x, self.conv_stem, self.bn1, "silu"))
        x = self.ops.conv_norm_act(x, self.conv_head, self.bn2, "silu")
        return self.classifier(self.dropout(x.mean(dim=(2, 3))))


def initialise(module: nn.Module) -> None:
    """The reference's start: convolutions normal by fan-out, each group its own, classifier uniform by fan-out."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        bound = module.out_features**-0.5
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


#: Resolution and crop of the reference's evaluation beside each network.
CONFIGS: dict[str, tuple[EfficientNetConfig, int, float]] = {
    "efficientnet_b0": (EfficientNetConfig(1.0, 1.0, dropout=0.2), 224, 0.875),
    "efficientnet_b1": (EfficientNetConfig(1.0, 1.1, dropout=0.2), 240, 0.882),
    "efficientnet_b2": (EfficientNetConfig(1.1, 1.2, dropout=0.3), 260, 0.89),
    "efficientnet_b3": (EfficientNetConfig(1.2, 1.4, dropout=0.3), 300, 0.904),
    "efficientnet_b4": (EfficientNetConfig(1.4, 1.8, dropout=0.4), 380, 0.922),
    "efficientnet_b5": (EfficientNetConfig(1.6, 2.2, dropout=0.4), 456, 0.934),
    "efficientnet_b6": (EfficientNetConfig(1.8, 2.6, dropout=0.5), 528, 0.942),
    "efficientnet_b7": (EfficientNetConfig(2.0, 3.1, dropout=0.5), 600, 0.949),
}


def _build(config: EfficientNetConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    if min(resolution) < 1:
        raise ValueError(f"resolution {format_resolution(resolution)} is not positive in both sides")
    return EfficientNet(ops, config, num_classes)


MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(partial(_build, config), (side, side), Preprocessing(crop_pct=crop))
    for name, (config, side, crop) in CONFIGS.items()
}

__all__ = ["CONFIGS", "MODELS", "EfficientNet", "EfficientNetConfig", "MBConv", "Names", "Release", "Stage"]
