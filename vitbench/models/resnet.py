"""Residual networks (arXiv:1512.03385), as torchvision and timm build them: the stride sits in the 3x3 convolution.

Parameter names and shapes are torchvision's and timm's, which agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops

_WIDTHS = (64, 128, 256, 512)

Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class ResNetConfig:
    """Residual blocks in each stage, and whether they are bottlenecks.

    dilated: the last stage keeps its input's resolution, and all its blocks but the first dilate by 2
        (needs bottlenecks).
    """

    blocks: tuple[int, int, int, int]
    bottleneck: bool
    dilated: bool = False


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, dilation * (kernel // 2), dilation, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), norm(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: [B, C, H, W] to [B, width, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 3, stride)
        self.bn1 = norm(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = norm(width)
        self.downsample = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions: [B, C, H, W] to [B, 4 * width, H / stride, W / stride]."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, 1)
        self.bn1 = norm(width)
        self.conv2 = _conv(width, width, 3, stride, dilation)
        self.bn2 = norm(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = norm(4 * width)
        self.downsample = _shortcut(in_channels, 4 * width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)


class ResNetFeatures(nn.Module):
    """Images [B, 3, H, W] of any size to the last stage's map [B, out_channels, H / 32, W / 32], rounded up.

    Convolutions start as the authors' (normal, scaled by the fan-out), norms as `norm` makes them.
    """

    def __init__(self, config: ResNetConfig, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        block = Bottleneck if config.bottleneck else BasicBlock
        self.conv1 = _conv(3, _WIDTHS[0], 7, stride=2)
        self.bn1 = norm(_WIDTHS[0])
        channels = _WIDTHS[0]
        stages: list[nn.Sequential] = []
        for width, blocks in zip(_WIDTHS, config.blocks, strict=True):
            dilated = config.dilated and len(stages) == len(_WIDTHS) - 1
            first = block(channels, width, 2 if stages and not dilated else 1, norm)
            channels = width * block.expansion
            later = partial(Bottleneck, dilation=2) if dilated else block
            stages.append(nn.Sequential(first, *(later(channels, width, 1, norm) for _ in range(blocks - 1))))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class ResNet(ResNetFeatures):
    """Images [B, 3, H, W] of any size to logits [B, num_classes]; the classifier starts as torch's Linear."""

    def __init__(self, config: ResNetConfig, num_classes: int) -> None:
        super().__init__(config)
        self.fc = nn.Linear(self.out_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(super().forward(x).mean(dim=(2, 3)))


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

__all__ = ["CONFIGS", "MODELS", "ResNet", "ResNetConfig", "ResNetFeatures"]
