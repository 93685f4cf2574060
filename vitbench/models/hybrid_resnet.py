"""The convolutional front of the hybrid vision transformers (arXiv:2010.11929, appendix B).

A ResNet whose convolutions standardise their weights and have no bias, whose norms are GroupNorm(32),
and which pads as TensorFlow's SAME does: by as much as the stride needs, the odd pixel below and to the right.
Blocks are post-activation bottlenecks. Parameter names and epsilons are timm's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

_ROOT_WIDTH = 64
_STAGE_WIDTHS = (256, 512, 1024, 2048)


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pads [B, C, H, W] so that a kernel x kernel layer without padding gives ceil(H / stride) rows, and so for W."""
    if kernel == 1:
        return x
    missing = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in missing)
    return F.pad(x, (left, right, top, bottom), value=value)


class StdConv2d(nn.Conv2d):
    """SAME-padded convolution without bias; each filter is brought to mean 0 and variance 1 before use."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        # At stride 1 SAME padding is symmetric for odd kernels: the convolution does it without a copy.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Normalising over everything but the output channel is a layer norm of the weight: one kernel.
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-8)
        if self.stride[0] > 1:
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, weight, None, self.stride, self.padding)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-5)


class Root(nn.Module):
    """7x7 stride-2 convolution, norm, ReLU and 3x3 stride-2 max pool: [B, 3, H, W] to [B, 64, H / 4, W / 4]."""

    out_channels = _ROOT_WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.conv = StdConv2d(3, _ROOT_WIDTH, 7, stride=2)
        self.norm = _norm(_ROOT_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        return F.max_pool2d(pad_same(x, 3, 2, value=-math.inf), 3, 2)


class Projection(nn.Module):
    """The shortcut of a block that changes its input's shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = StdConv2d(in_channels, out_channels, 1, stride)
        self.norm = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 with a quarter of the width inside; ReLU after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = out_channels // 4
        self.downsample = Projection(in_channels, out_channels, stride) if in_channels != out_channels else None
        self.conv1 = StdConv2d(in_channels, inner, 1)
        self.norm1 = _norm(inner)
        self.conv2 = StdConv2d(inner, inner, 3, stride)
        self.norm2 = _norm(inner)
        self.conv3 = StdConv2d(inner, out_channels, 1)
        self.norm3 = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(self.norm2(self.conv2(y)), inplace=True)
        return F.relu(self.norm3(self.conv3(y)) + shortcut, inplace=True)


class Stage(nn.Module):
    """Bottlenecks of one width, the first of them strided."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            Bottleneck(in_channels, out_channels, stride),
            *(Bottleneck(out_channels, out_channels, 1) for _ in range(blocks - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class HybridResNet(nn.Module):
    """Root and stages: [B, 3, H, W] to [B, out_channels, H / S, W / S], rounded up, with S of `backbone_stride`."""

    def __init__(self, stage_blocks: Sequence[int]) -> None:
        super().__init__()
        widths = (_ROOT_WIDTH, *_STAGE_WIDTHS[: len(stage_blocks)])
        self.stem = Root()
        self.stages = nn.Sequential(
            *(Stage(widths[i], widths[i + 1], blocks, 2 if i else 1) for i, blocks in enumerate(stage_blocks))
        )
        self.out_channels = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


def make_backbone(stage_blocks: Sequence[int]) -> Root | HybridResNet:
    """The backbone with so many bottlenecks in each stage; without stages it is the root alone."""
    return HybridResNet(stage_blocks) if stage_blocks else Root()


def backbone_stride(stage_blocks: Sequence[int]) -> int:
    """Pixels per output cell: the root takes 4, each stage but the first doubles it."""
    return 4 * 2 ** max(len(stage_blocks) - 1, 0)


__all__ = ["Bottleneck", "HybridResNet", "Root", "backbone_stride", "make_backbone", "pad_same"]
