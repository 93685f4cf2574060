"""Vision transformers: ViT (arXiv:2010.11929, sizes of arXiv:2106.10270), its hybrids, DeiT (arXiv:2012.12877).

Parameter names and shapes are timm's, so its weights load and give the same logits: exact GELU, LayerNorm
epsilon 1e-6, class token first, distillation token second, patches in row-major order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.drop_path import DropPath
from vitbench.models.hybrid_resnet import Bottleneck, backbone_stride, make_backbone
from vitbench.models.resample import Grid, resample_positions
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops

_MLP_RATIO = 4
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Size:
    """What the letter in a model's name stands for."""

    width: int
    depth: int
    heads: int


@dataclass(frozen=True)
class ViTConfig:
    """One row of the table at the end of this file.

    patch: side of a patch in pixels, or in cells of the backbone's output where there is one.
    resolution: the published one, in pixels.
    backbone: bottlenecks in each stage of the convolutional front; () is its root alone, None no front.
    dropout: after the positions, attention's projection and both layers of each MLP; drop_path: the last
        block's rate. Both act in training only.
    """

    size: Size
    patch: int
    resolution: int
    backbone: tuple[int, ...] | None = None
    distilled: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    @property
    def stride(self) -> int:
        """Pixels between patches."""
        return self.patch * (1 if self.backbone is None else backbone_stride(self.backbone))

    @property
    def resolution_multiple(self) -> int:
        """Pixels that each side must be a multiple of; a backbone under patches of one cell pads whatever it gets."""
        return 1 if self.backbone is not None and self.patch == 1 else self.stride

    def grid(self, resolution: Resolution) -> Grid:
        """Rows and columns of patches; raises ValueError at a resolution that they do not cover exactly."""
        multiple = self.resolution_multiple
        if any(side < 1 or side % multiple for side in resolution):
            raise ValueError(f"resolution {format_resolution(resolution)} is not a positive multiple of {multiple} px")
        height, width = (math.ceil(side / self.stride) for side in resolution)
        return height, width


class PatchEmbed(nn.Module):
    """[B, 3, H, W] to [B, h * w, width]: patches through one convolution, after the backbone if there is one."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.backbone = None if config.backbone is None else make_backbone(config.backbone)
        channels = 3 if self.backbone is None else self.backbone.out_channels
        self.proj = nn.Conv2d(channels, config.size.width, config.patch, config.patch)

    def forward(self, x: Tensor) -> Tensor:
        if self.backbone is not None:
            x = self.backbone(x)
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, width]."""

    def __init__(self, ops: Ops, size: Size, dropout: float) -> None:
        super().__init__()
        self.ops = ops
        self.heads = size.heads
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.proj = nn.Linear(size.width, size.width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, N, 3, H, D]
        q, k, v = (part.transpose(1, 2) for part in packed.unbind(2))  # each [B, H, N, D], strided
        return self.proj_drop(self.proj(self.ops.attention(q, k, v).transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two linear layers with GELU between, over [B, N, width]; dropout after the GELU and at the end."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Pre-norm transformer encoder block over [B, N, width]."""

    def __init__(self, ops: Ops, size: Size, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=_NORM_EPS)
        self.attn = Attention(ops, size, dropout)
        self.norm2 = nn.LayerNorm(size.width, eps=_NORM_EPS)
        self.mlp = Mlp(size.width, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """Images [B, 3, H, W] at one resolution to logits [B, num_classes].

    A distilled model averages its two heads, in training too: training each against its own target
    is the business of a distillation loss, and a benchmark has none.

    Raises: ValueError when the resolution, or the image given to forward, does not fit.
    """

    def __init__(self, ops: Ops, config: ViTConfig, resolution: Resolution, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.resolution = resolution
        self.grid = config.grid(resolution)
        width = config.size.width
        self.prefix_tokens = 2 if config.distilled else 1
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, width)) if config.distilled else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.prefix_tokens + math.prod(self.grid), width))
        self.pos_drop = nn.Dropout(config.dropout)
        depth = config.size.depth
        rates = (config.drop_path * block / max(depth - 1, 1) for block in range(depth))
        self.blocks = nn.Sequential(*(Block(ops, config.size, config.dropout, rate) for rate in rates))
        self.norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.head = nn.Linear(width, num_classes)
        self.head_dist = nn.Linear(width, num_classes) if config.distilled else None
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.resolution:
            raise ValueError(
                f"image of shape {list(x.shape)} given to a model built for {format_resolution(self.resolution)}"
            )
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        x = self.pos_drop(torch.cat([*prefix, self.patch_embed(x)], dim=1) + self.pos_embed)
        x = self.norm(self.blocks(x))
        if self.head_dist is None:
            return self.head(x[:, 0])
        return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2

    def resize_state_dict(self, state: dict[str, Tensor], source: Resolution | None = None) -> dict[str, Tensor]:
        """The state with its position table resampled to this model's grid, as `resample_positions` does.

        Args:
            source: (height, width) that `state` was made for; by default told from the table's size.

        Raises: ValueError when the table's grid cannot be known.
        """
        published = self.config.grid((self.config.resolution, self.config.resolution))
        given = source and self.config.grid(source)
        table = resample_positions(state["pos_embed"], self.prefix_tokens, published, self.grid, given)
        return {**state, "pos_embed": table}


def _initialise(module: nn.Module) -> None:
    """DeiT's start for tokens and linear layers (ViT's own, with a head of zeros, makes every logit zero),
    ViT's for convolutions and for the last norm of a bottleneck, whose zeros make it its shortcut at first.

    DeiT truncates at 100 standard deviations, so never; and torch's truncated normal resamples until
    all values fit, which fake tensors cannot.
    """
    if isinstance(module, VisionTransformer):
        for token in (module.cls_token, module.dist_token, module.pos_embed):
            if token is not None:
                nn.init.normal_(token, std=0.02)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Bottleneck):
        nn.init.zeros_(module.norm3.weight)


TINY, SMALL, BASE = Size(192, 12, 3), Size(384, 12, 6), Size(768, 12, 12)
LARGE, HUGE = Size(1024, 24, 16), Size(1280, 32, 16)
ROOT, R26, R50, R50_S16 = (), (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 9)
#: What the authors' code drops of its L/16, H/14, R50+B/16 and R50+L/32, and of no other.
DROPOUT = 0.1

VIT_CONFIGS: dict[str, ViTConfig] = {
    "vit_tiny_patch16_224": ViTConfig(TINY, 16, 224),
    "vit_tiny_patch16_384": ViTConfig(TINY, 16, 384),
    "vit_small_patch32_224": ViTConfig(SMALL, 32, 224),
    "vit_small_patch32_384": ViTConfig(SMALL, 32, 384),
    "vit_small_patch16_224": ViTConfig(SMALL, 16, 224),
    "vit_small_patch16_384": ViTConfig(SMALL, 16, 384),
    "vit_base_patch32_224": ViTConfig(BASE, 32, 224),
    "vit_base_patch32_384": ViTConfig(BASE, 32, 384),
    "vit_base_patch16_224": ViTConfig(BASE, 16, 224),
    "vit_base_patch16_384": ViTConfig(BASE, 16, 384),
    "vit_large_patch32_224": ViTConfig(LARGE, 32, 224),
    "vit_large_patch32_384": ViTConfig(LARGE, 32, 384),
    "vit_large_patch16_224": ViTConfig(LARGE, 16, 224, dropout=DROPOUT),
    "vit_large_patch16_384": ViTConfig(LARGE, 16, 384, dropout=DROPOUT),
    "vit_large_patch16_512": ViTConfig(LARGE, 16, 512, dropout=DROPOUT),
    "vit_large_patch14_224": ViTConfig(LARGE, 14, 224),
    "vit_huge_patch14_224": ViTConfig(HUGE, 14, 224, dropout=DROPOUT),
    "vit_huge_patch14_518": ViTConfig(HUGE, 14, 518, dropout=DROPOUT),
    "vit_base_r50_s16_224": ViTConfig(BASE, 1, 224, backbone=R50_S16, dropout=DROPOUT),
    "vit_base_r50_s16_384": ViTConfig(BASE, 1, 384, backbone=R50_S16, dropout=DROPOUT),
    "vit_base_r26_s32_224": ViTConfig(BASE, 1, 224, backbone=R26),
    "vit_small_r26_s32_224": ViTConfig(SMALL, 1, 224, backbone=R26),
    "vit_small_r26_s32_384": ViTConfig(SMALL, 1, 384, backbone=R26),
    "vit_large_r50_s32_224": ViTConfig(LARGE, 1, 224, backbone=R50, dropout=DROPOUT),
    "vit_large_r50_s32_384": ViTConfig(LARGE, 1, 384, backbone=R50, dropout=DROPOUT),
    "vit_tiny_r_s16_p8_224": ViTConfig(TINY, 8, 224, backbone=ROOT),
    "vit_tiny_r_s16_p8_384": ViTConfig(TINY, 8, 384, backbone=ROOT),
}

DEIT_CONFIGS: dict[str, ViTConfig] = {
    "deit_tiny_patch16_224": ViTConfig(TINY, 16, 224, drop_path=0.1),
    "deit_small_patch16_224": ViTConfig(SMALL, 16, 224, drop_path=0.1),
    "deit_base_patch16_224": ViTConfig(BASE, 16, 224, drop_path=0.1),
    "deit_base_patch16_384": ViTConfig(BASE, 16, 384, drop_path=0.1),
    "deit_tiny_distilled_patch16_224": ViTConfig(TINY, 16, 224, distilled=True, drop_path=0.1),
    "deit_small_distilled_patch16_224": ViTConfig(SMALL, 16, 224, distilled=True, drop_path=0.1),
    "deit_base_distilled_patch16_224": ViTConfig(BASE, 16, 224, distilled=True, drop_path=0.1),
    "deit_base_distilled_patch16_384": ViTConfig(BASE, 16, 384, distilled=True, drop_path=0.1),
}


def _build(config: ViTConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    return VisionTransformer(ops, config, resolution, num_classes)


def _specs(configs: dict[str, ViTConfig], preprocessing: Preprocessing) -> dict[str, ModelSpec]:
    return {
        name: ModelSpec(
            build=partial(_build, config),
            resolution=(config.resolution, config.resolution),
            preprocessing=replace(preprocessing, crop_pct=0.9 if config.resolution < 384 else 1.0),
        )
        for name, config in configs.items()
    }


_HALF = (0.5, 0.5, 0.5)
MODELS: dict[str, ModelSpec] = {
    **_specs(VIT_CONFIGS, Preprocessing(mean=_HALF, std=_HALF)),
    **_specs(DEIT_CONFIGS, Preprocessing()),
}

__all__ = ["DEIT_CONFIGS", "MODELS", "VIT_CONFIGS", "ViTConfig", "VisionTransformer"]
