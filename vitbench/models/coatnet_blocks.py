"""The two blocks of CoAtNet (arXiv:2106.04803) and the choices in which its networks differ.

The defaults are the paper's block, as far as it says; where it does not, the reading whose parameters and
multiply-accumulates come out as published: expansion and squeeze-and-excitation counted from the output width,
a bias in the last convolution and in the shortcut's, no norm after the last convolution. Exact GELU, SiLU inside
squeeze-and-excitation, epsilons and 2x2 pooling as timm has them. Maps are [B, C, h, w], tokens [B, h * w, C].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.models.drop_path import DropPath
from vitbench.models.resample import Grid
from vitbench.ops.bundle import Ops

Pool = Literal["max2", "avg2", "max3"]
Activation = Literal["gelu", "silu", "relu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}
_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max2": partial(F.max_pool2d, kernel_size=2),
    "avg2": partial(F.avg_pool2d, kernel_size=2),
    "max3": partial(F.max_pool2d, kernel_size=3, stride=2, padding=1),
}


@dataclass(frozen=True)
class MBConvConfig:
    """How the convolutional blocks are made.

    stride_in: which layer of a downsampling block has the stride; "pool" averages 2x2 before the first.
    expand_from: whose width the expansion multiplies.
    squeeze_from, squeeze_bias: whose width squeeze-and-excitation divides; whether its two layers have a bias.
    squeeze_first: squeeze-and-excitation before the norm and activation of the depthwise convolution.
    pre_norm, pre_activation: a norm before the first convolution; an activation after that norm.
    output_bias, output_norm: a bias in, a norm after, the last convolution; the shortcut has the same bias.
    always_project: a convolution in every downsampling shortcut, even between equal widths.
    """

    pool: Pool = "max2"
    stride_in: Literal["expand", "depthwise", "pool"] = "expand"
    activation: Activation = "gelu"
    squeeze_activation: Activation = "silu"
    expand_from: Literal["output", "input"] = "output"
    squeeze_from: Literal["output", "input", "hidden"] = "output"
    squeeze_bias: bool = True
    squeeze_first: bool = False
    pre_norm: bool = True
    pre_activation: bool = False
    output_bias: bool = True
    output_norm: bool = False
    always_project: bool = False
    expansion: int = 4
    squeeze_ratio: float = 0.25


@dataclass(frozen=True)
class TransformerConfig:
    """How the attention blocks are made.

    attention_width: whose width the heads share, or so many channels at every stage.
    hidden_from: whose width the feed-forward multiplies.
    norm_before_pool: the order of the two in the attention branch of a downsampling block.
    layer_scale: what each channel of both branches is multiplied by at first, or None for no such scale.
    """

    pool: Pool = "max2"
    head_dim: int = 32
    attention_width: Literal["output", "input"] | int = "output"
    qkv_bias: bool = True
    shortcut_bias: bool = True
    always_project: bool = False
    hidden_from: Literal["output", "input"] = "output"
    norm_before_pool: bool = True
    layer_scale: float | None = None
    norm_eps: float = 1e-6
    expansion: int = 4


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] to [B, h * w, C]; no copy when x is channels_last."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, grid: Grid) -> Tensor:
    """[B, h * w, C] to [B, C, h, w] without a copy: contiguous tokens become a channels_last map."""
    return x.transpose(1, 2).unflatten(2, grid)


class Shortcut(nn.Module):
    """Pooling by two, then a 1x1 convolution where the width changes: the shortcut of a downsampling block."""

    def __init__(self, in_width: int, width: int, pool: Pool, bias: bool, always_project: bool) -> None:
        super().__init__()
        self.pool = pool
        projects = always_project or in_width != width
        self.expand = nn.Conv2d(in_width, width, 1, bias=bias) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        x = _POOLS[self.pool](x)
        return x if self.expand is None else self.expand(x)


class SqueezeExcite(nn.Module):
    """Scales each channel of a map by a function of all channels' means."""

    def __init__(self, width: int, squeezed: int, config: MBConvConfig) -> None:
        super().__init__()
        self.activation = config.squeeze_activation
        self.fc1 = nn.Conv2d(width, squeezed, 1, bias=config.squeeze_bias)
        self.fc2 = nn.Conv2d(squeezed, width, 1, bias=config.squeeze_bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x.mean((2, 3), keepdim=True))
        return x * self.fc2(ACTIVATIONS[self.activation](y)).sigmoid()


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-and-excitation: 1x1, 3x3 depthwise and 1x1 convolutions, and a shortcut."""

    def __init__(
        self, ops: Ops, config: MBConvConfig, in_width: int, width: int, downsamples: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.ops, self.config = ops, config
        hidden = config.expansion * (width if config.expand_from == "output" else in_width)
        squeeze_widths = {"output": width, "input": in_width, "hidden": hidden}
        squeeze = SqueezeExcite(hidden, int(config.squeeze_ratio * squeeze_widths[config.squeeze_from]), config)
        stride_in = config.stride_in if downsamples else None
        self.pools = stride_in == "pool"
        self.shortcut = (
            Shortcut(in_width, width, config.pool, config.output_bias, config.always_project) if downsamples else None
        )
        self.pre_norm = nn.BatchNorm2d(in_width) if config.pre_norm else None
        self.conv1_1x1 = nn.Conv2d(in_width, hidden, 1, 2 if stride_in == "expand" else 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        stride = 2 if stride_in == "depthwise" else 1
        self.conv2_kxk = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.se_early = squeeze if config.squeeze_first else None
        self.norm2 = nn.BatchNorm2d(hidden)
        self.se = None if config.squeeze_first else squeeze
        self.conv3_1x1 = nn.Conv2d(hidden, width, 1, bias=config.output_bias)
        self.norm3 = nn.BatchNorm2d(width) if config.output_norm else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        ops, activation = self.ops, self.config.activation
        shortcut = x if self.shortcut is None else self.shortcut(x)
        before = self.pre_norm
        if before is not None and (self.config.pre_activation or self.pools):
            x, before = before(x), None
        if self.config.pre_activation:
            x = ACTIVATIONS[activation](x)
        if self.pools:
            x = F.avg_pool2d(x, 2)
        x = ops.conv_norm_act(x, self.conv1_1x1, self.norm1, activation, before=before)
        if self.se_early is not None:
            x = ops.depthwise_conv2d(x, self.conv2_kxk.weight, stride=self.conv2_kxk.stride[0], padding=1)
            x = ACTIVATIONS[activation](self.norm2(self.se_early(x)))
        else:
            x = ops.conv_norm_act(x, self.conv2_kxk, self.norm2, activation)
        if self.se is not None:
            x = self.se(x)
        x = self.conv3_1x1(x) if self.norm3 is None else ops.conv_norm_act(x, self.conv3_1x1, self.norm3)
        return self.drop_path(x) + shortcut


class Pointwise(nn.Conv2d):
    """A 1x1 convolution applied to tokens [..., C]."""

    def __init__(self, in_width: int, width: int, bias: bool = True) -> None:
        super().__init__(in_width, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class PooledNorm(nn.Module):
    """The norm and the pooling of a downsampling block's attention branch: a map to tokens of half its sides."""

    def __init__(self, config: TransformerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        pool = _POOLS[self.config.pool]
        if self.config.norm_before_pool:
            return to_tokens(pool(to_map(self.norm(to_tokens(x)), (x.shape[2], x.shape[3]))))
        return self.norm(to_tokens(pool(x)))


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of a grid, with a learned bias for every offset between cells.

    The channels of the packed projection are, head by head, those of q, k and v.
    """

    def __init__(self, ops: Ops, config: TransformerConfig, in_width: int, width: int, grid: Grid) -> None:
        super().__init__()
        self.ops, self.grid = ops, grid
        widths = {"output": width, "input": in_width}
        inner = config.attention_width if isinstance(config.attention_width, int) else widths[config.attention_width]
        self.heads = inner // config.head_dim
        self.qkv = Pointwise(in_width, 3 * inner, bias=config.qkv_bias)
        table = torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1), self.heads)
        self.rel_pos = nn.ParameterDict({"relative_position_bias_table": nn.Parameter(table)})
        self.proj = Pointwise(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x).unflatten(-1, (self.heads, 3, -1))  # [B, N, H, 3, D]
        q, k, v = (part.transpose(1, 2) for part in packed.unbind(3))
        table = self.rel_pos["relative_position_bias_table"]
        return self.proj(self.ops.relative_attention(q, k, v, table, self.grid).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two pointwise layers with GELU between, over tokens."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(width, hidden)
        self.fc2 = Pointwise(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor for every channel of tokens [..., C]."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Transformer(nn.Module):
    """Pre-norm relative attention and feed-forward, each with a shortcut, on a map; `grid` is that of the result."""

    def __init__(
        self,
        ops: Ops,
        config: TransformerConfig,
        in_width: int,
        width: int,
        grid: Grid,
        downsamples: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.shortcut = (
            Shortcut(in_width, width, config.pool, config.shortcut_bias, config.always_project) if downsamples else None
        )
        self.norm1 = PooledNorm(config, in_width) if downsamples else nn.LayerNorm(in_width, eps=config.norm_eps)
        self.attn = Attention(ops, config, in_width, width, grid)
        scale = config.layer_scale
        self.ls1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, config.expansion * (width if config.hidden_from == "output" else in_width))
        self.ls2 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn(self.norm1(to_tokens(x) if self.shortcut is None else x))
        shortcut = to_tokens(x if self.shortcut is None else self.shortcut(x))
        tokens = self.drop_path(self.ls1(attended)) + shortcut  # the sum is laid out as its first term
        tokens = tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))
        return to_map(tokens, self.grid)
