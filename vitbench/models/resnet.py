"""Residual networks (arXiv:1512.03385), as torchvision and timm build them: the stride sits in the 3x3 convolution.

Parameter names and shapes are torchvision's and timm's, which agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops import Ops

_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class ResNetConfig:
    """Residual blocks in each stage, and whether they are bottlenecks."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: [B, C, H, W] to [B, width, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions: [B, C, H, W] to [B, 4 * width, H / stride, W / stride]."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)


class ResNet(nn.Module):
    """Images [B, 3, H, W] of any size to logits [B, num_classes].

    Convolutions start as the authors' (normal, scaled by the fan-out), norms at one, the classifier as torch's Linear.
    """

    def __init__(self, config: ResNetConfig, num_classes: int) -> None:
        super().__init__()
        block = Bottleneck if config.bottleneck else BasicBlock
        self.conv1 = _conv(3, _WIDTHS[0], 7, stride=2)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        channels = _WIDTHS[0]
        stages: list[nn.Sequential] = []
        for width, blocks in zip(_WIDTHS, config.blocks, strict=True):
            first = block(channels, width, stride=2 if stages else 1)
            channels = width * block.expansion
            stages.append(nn.Sequential(first, *(block(channels, width, stride=1) for _ in range(blocks - 1))))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


CONFIGS: dict[str, ResNetConfig] = {
    "resnet18": ResNetConfig((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetConfig((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetConfig((3, 4, 6, 3), bottleneck=True),
    "resnet101": ResNetConfig((3, 4, 23, 3), bottleneck=True),
    "resnet152": ResNetConfig((3, 8, 36, 3), bottleneck=True),
}


def _build(config: ResNetConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    # No operation of a ResNet is in the bundle, and no parameter depends on the resolution.
    if min(resolution) < 1:
        raise ValueError(f"resolution {format_resolution(resolution)} is not positive in both sides")
    return ResNet(config, num_classes)


MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(
        build=partial(_build, config),
        resolution=(224, 224),
        preprocessing=Preprocessing(interpolation="bilinear"),
    )
    for name, config in CONFIGS.items()
}

__all__ = ["CONFIGS", "MODELS", "ResNet", "ResNetConfig"]
