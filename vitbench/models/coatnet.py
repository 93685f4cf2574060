"""CoAtNet: convolution and attention in one network (arXiv:2106.04803), and its relatives.

A convolutional stem and four stages, each of MBConv (C) or relative-attention (T) blocks. Its authors released no
code: `coatnet_N` is the reading of the paper whose counts come out as published but for CoAtNet-3 (166.97 M
parameters, 168 M published), with the stride in the first 1x1 convolution. `coatnet_N_dwstride` is the paper's
Table 9 and timm's `coatnet_N_224`: stride in the depthwise convolution, average pooling. `coatnet_N_rw_224` are
timm's own networks. Parameter names and shapes are timm's throughout.

The ablation layouts (`coatnet_0_cccc`, ..., `coatnet_0_vit_rel`, and at CoAtNet-2's widths) only swap block types:
the paper's own were of comparable size, but their widths and depths were not published, so these are **not
size-matched**. `cctt` is CoAtNet itself. ViT_REL has as many blocks as the four stages together, at the width of
the stage of stride 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.coatnet_blocks import (
    Activation,
    Attention,
    MBConv,
    MBConvConfig,
    Pointwise,
    Transformer,
    TransformerConfig,
    to_tokens,
)
from vitbench.models.resample import Grid, resample_grid, source_grid
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops

PATCH = 16


@dataclass(frozen=True)
class CoAtNetConfig:
    """One network.

    layout: a letter for each stage, C for MBConv, T for attention.
    stem: widths of its two convolutions (the first halves the image, each stage halves again), or None for 16x16
        patches, whose stages do not downsample.
    stem_output_norm: a norm and an activation after the stem's second convolution too.
    head: after global average pooling a norm, a layer with tanh and the classifier ("tanh"); before it a norm,
        after it the classifier ("linear"); or a classifier without bias alone ("bare").
    drop_path: the last block's rate, in training only.
    resolution: the published one, in pixels.
    num_classes: of the published weights.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stem: tuple[int, int] | None
    layout: str = "CCTT"
    conv: MBConvConfig = field(default_factory=MBConvConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    stem_output_norm: bool = False
    head: Literal["tanh", "linear", "bare"] = "tanh"
    drop_path: float = 0.0
    resolution: int = 224
    num_classes: int = 1000

    @property
    def stride(self) -> int:
        """Pixels between the last stage's cells, and what both sides of an image must be multiples of."""
        return PATCH if self.stem is None else 2 ** (1 + len(self.layout))


class Stem(nn.Module):
    """Two 3x3 convolutions, the first strided: [B, 3, 2h, 2w] to [B, C, h, w]."""

    def __init__(self, ops: Ops, widths: tuple[int, int], activation: Activation, output_norm: bool) -> None:
        super().__init__()
        self.ops, self.activation = ops, activation
        self.conv1 = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(widths[0])
        self.conv2 = nn.Conv2d(*widths, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(widths[1]) if output_norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.ops.conv_norm_act(x, self.conv1, self.norm1, self.activation)
        if self.norm2 is None:
            return self.conv2(x)
        return self.ops.conv_norm_act(x, self.conv2, self.norm2, self.activation)


class Stage(nn.Module):
    """Blocks of one kind; the first may halve the map and changes its width."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Head(nn.Module):
    """Pooled features [B, C] to logits, with a norm and a tanh layer before the classifier where `hidden`."""

    def __init__(self, width: int, num_classes: int, hidden: bool, bias: bool, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=norm_eps) if hidden else nn.Identity()
        self.pre_logits = nn.ModuleDict({"fc": nn.Linear(width, width)}) if hidden else None
        self.fc = nn.Linear(width, num_classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.pre_logits is not None:
            x = self.pre_logits["fc"](x).tanh()
        return self.fc(x)


class CoAtNet(nn.Module):
    """Images [B, 3, H, W] at one resolution to logits [B, num_classes].

    Raises: ValueError when the resolution, or the image given to forward, does not fit.
    """

    def __init__(self, ops: Ops, config: CoAtNetConfig, resolution: Resolution, num_classes: int) -> None:
        super().__init__()
        if any(side < 1 or side % config.stride for side in resolution):
            raise ValueError(
                f"resolution {format_resolution(resolution)} is not a positive multiple of {config.stride} px"
            )
        self.config, self.resolution = config, resolution
        self.stem: nn.Module
        if config.stem is None:
            stride, width = PATCH, config.widths[0]
            self.stem = nn.Conv2d(3, width, PATCH, PATCH)
        else:
            stride, width = 2, config.stem[1]
            self.stem = Stem(ops, config.stem, config.conv.activation, config.stem_output_norm)
        rates = _rates(config)
        stages: list[nn.Module] = []
        for kind, out_width, depth in zip(config.layout, config.widths, config.depths, strict=True):
            blocks: list[nn.Module] = []
            for block in range(depth):
                downsamples = block == 0 and config.stem is not None
                stride *= 2 if downsamples else 1
                if kind == "C":
                    blocks.append(MBConv(ops, config.conv, width, out_width, downsamples, next(rates)))
                else:
                    grid = (resolution[0] // stride, resolution[1] // stride)
                    rate = next(rates)
                    blocks.append(Transformer(ops, config.transformer, width, out_width, grid, downsamples, rate))
                width = out_width
            stages.append(Stage(blocks))
        self.stages = nn.Sequential(*stages)
        eps = config.transformer.norm_eps
        self.norm = nn.LayerNorm(width, eps=eps) if config.head == "linear" else None
        self.head = Head(width, num_classes, config.head == "tanh", config.head != "bare", eps)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.resolution:
            raise ValueError(
                f"image of shape {list(x.shape)} given to a model built for {format_resolution(self.resolution)}"
            )
        x = self.stages(self.stem(x))
        return self.head(x.mean((2, 3)) if self.norm is None else self.norm(to_tokens(x)).mean(1))

    def resize_state_dict(self, state: dict[str, Tensor], source: Resolution | None = None) -> dict[str, Tensor]:
        """The state with its tables of relative positions resampled, bilinearly as in the paper, to this model's grids.

        A table's grid is taken as the published one where it has so many offsets, else as this model's where that
        has as many, else as a square. timm stretches the offsets unevenly instead.

        Args:
            source: (height, width) that `state` was made for; by default told from the tables' sizes.

        Raises: ValueError when none of these fits.
        """
        resized = dict(state)
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                key = f"{name}.rel_pos.relative_position_bias_table"
                side = self.config.resolution * module.grid[0] // self.resolution[0]
                own, published = _offsets(module.grid), _offsets((side, side))
                table = state[key]
                if source is None:
                    saved = source_grid(len(table), published, own)
                else:
                    height, width = (source[axis] * module.grid[axis] // self.resolution[axis] for axis in (0, 1))
                    saved = _offsets((height, width))
                resized[key] = resample_grid(table, saved, own, "bilinear")
        return resized


def _offsets(grid: Grid) -> Grid:
    """How many vertical and horizontal offsets there are between the cells of a grid."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _rates(config: CoAtNetConfig) -> Iterator[float]:
    """Drop-path rate of each block, from 0 to the config's."""
    blocks = sum(config.depths)
    return (config.drop_path * block / max(blocks - 1, 1) for block in range(blocks))


def _initialise(module: nn.Module) -> None:
    """timm's start: normal by the fan-out for convolutions, Glorot's uniform in attention blocks."""
    if isinstance(module, Pointwise):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):
        nn.init.normal_(module.rel_pos["relative_position_bias_table"], std=0.02)
    elif isinstance(module, Transformer) and module.shortcut is not None and module.shortcut.expand is not None:
        nn.init.xavier_uniform_(module.shortcut.expand.weight)


_SMALL, _LARGE = (96, 192, 384, 768), (192, 384, 768, 1536)
PAPER: dict[str, CoAtNetConfig] = {
    "coatnet_0": CoAtNetConfig(_SMALL, (2, 3, 5, 2), (64, 64), drop_path=0.2),
    "coatnet_1": CoAtNetConfig(_SMALL, (2, 6, 14, 2), (64, 64), drop_path=0.3),
    "coatnet_2": CoAtNetConfig((128, 256, 512, 1024), (2, 6, 14, 2), (128, 128), drop_path=0.5),
    "coatnet_3": CoAtNetConfig(_LARGE, (2, 6, 14, 2), (192, 192), drop_path=0.7),
    "coatnet_4": CoAtNetConfig(_LARGE, (2, 12, 28, 2), (192, 192), drop_path=0.7),
}
_LARGER = {
    "coatnet_0": (384,),
    "coatnet_1": (384,),
    "coatnet_2": (384, 512),
    "coatnet_3": (384, 512),
    "coatnet_4": (384, 512),
}


def _at_published_resolutions() -> dict[str, CoAtNetConfig]:
    configs: dict[str, CoAtNetConfig] = {}
    for name, config in PAPER.items():
        configs[name] = config
        configs |= {f"{name}_{side}": replace(config, resolution=side) for side in _LARGER[name]}
    return configs


def _dwstride(config: CoAtNetConfig) -> CoAtNetConfig:
    conv = replace(config.conv, stride_in="depthwise", pool="avg2")
    return replace(config, conv=conv, transformer=replace(config.transformer, pool="avg2"))


_RW = CoAtNetConfig(
    _SMALL,
    (2, 6, 14, 2),
    (32, 64),
    conv=MBConvConfig(
        pool="avg2",
        stride_in="depthwise",
        activation="silu",
        squeeze_activation="relu",
        expand_from="input",
        squeeze_from="hidden",
        squeeze_first=True,
        pre_activation=True,
        output_bias=False,
    ),
    transformer=TransformerConfig(pool="avg2", attention_width="input", shortcut_bias=False),
    head="linear",
)
_RW_LATER = replace(
    _RW,
    widths=(128, 256, 512, 1024),
    stem=(64, 128),
    conv=replace(_RW.conv, squeeze_activation="silu", squeeze_first=False),
    transformer=replace(_RW.transformer, shortcut_bias=True),
)
TIMM: dict[str, CoAtNetConfig] = {
    "coatnet_0_rw_224": replace(_RW, depths=(2, 3, 7, 2), conv=replace(_RW.conv, stride_in="pool")),
    "coatnet_1_rw_224": _RW,
    "coatnet_2_rw_224": _RW_LATER,
    "coatnet_3_rw_224": replace(
        _RW_LATER,
        widths=_LARGE,
        stem=(96, 192),
        transformer=replace(_RW_LATER.transformer, layer_scale=1e-6),
        num_classes=11821,  # its only weights are of ImageNet-12k
    ),
}


def _ablations(name: str) -> dict[str, CoAtNetConfig]:
    """Every layout of the paper's section 2.2 at the widths and depths of one network."""
    config = PAPER[name]
    layouts = ("CCCC", "CCCT", "CCTT", "CTTT")
    configs = {f"{name}_{layout.lower()}": replace(config, layout=layout) for layout in layouts}
    vit_rel = replace(config, layout="T", widths=config.widths[2:3], depths=(sum(config.depths),), stem=None)
    return {**configs, f"{name}_vit_rel": vit_rel}


CONFIGS: dict[str, CoAtNetConfig] = {
    **_at_published_resolutions(),
    **{f"{name}_dwstride": _dwstride(config) for name, config in PAPER.items()},
    **TIMM,
    **_ablations("coatnet_0"),
    **_ablations("coatnet_2"),
}


def _build(config: CoAtNetConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    return CoAtNet(ops, config, resolution, num_classes)


_HALF = (0.5, 0.5, 0.5)


def specs(configs: dict[str, CoAtNetConfig], preprocessing: Preprocessing) -> dict[str, ModelSpec]:
    """What the table of models says of each of the configs."""
    return {
        name: ModelSpec(
            partial(_build, config), (config.resolution, config.resolution), preprocessing, config.num_classes
        )
        for name, config in configs.items()
    }


MODELS: dict[str, ModelSpec] = specs(CONFIGS, Preprocessing(mean=_HALF, std=_HALF, crop_pct=0.95))

__all__ = ["CONFIGS", "MODELS", "PAPER", "CoAtNet", "CoAtNetConfig", "specs"]
