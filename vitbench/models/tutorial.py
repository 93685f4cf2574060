"""What people copy, beside what the papers describe: the ViT of a widely read post, and the CoAtNets of two tutorials.

`tutorial_coatnet_N` is that of KKKSQJ/DeepLearning, `tutorial_coatnet_N_prenorm` that of chinhsuanwu/coatnet-pytorch,
from which the former derives by leaving out the norm before MBConv. Both are configs of `coatnet.CoAtNet`, so their
parameters have its names, with the order of channels in q, k and v that goes with them, and their tables start as
CoAtNet's, not at zero, which would hide a wrong bias. How they differ from the paper:

- 256 attention channels, 8 heads of 32, at every stage, and no bias in q, k and v: most of the missing parameters.
- Feed-forward, expansion and squeeze-and-excitation count from the block's input width, so the first block of each
  stage is half as wide as it should be; squeeze-and-excitation has GELU inside and no bias.
- A norm and GELU after the stem's second convolution, a norm after MBConv's last; LayerNorm after the pooling; 3x3
  max pooling; shortcuts without bias, and with a convolution even between equal widths.
- A classifier without bias and without norm; no stochastic depth. The last width of the third network is 1026, a
  slip for 1024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models import coatnet
from vitbench.models.coatnet_blocks import MBConvConfig, TransformerConfig
from vitbench.models.resample import resample_positions
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops

PATCH = 16
PUBLISHED_GRID = (14, 14)


@dataclass(frozen=True)
class TutorialViTConfig:
    """Sizes of the post's ViT."""

    width: int = 128
    heads: int = 16
    depth: int = 5


class Attention(nn.Module):
    """The post's multi-head attention over [B, N, width], which has no output projection.

    One linear layer with ReLU makes q, k and v, three times over: they are equal, and cost what the post's cost. Its
    result is doubled and the input added before the norm.
    """

    def __init__(self, ops: Ops, config: TutorialViTConfig) -> None:
        super().__init__()
        self.ops, self.heads = ops, config.heads
        self.proj = nn.Linear(config.width, config.width, bias=False)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (F.relu(self.proj(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2) for _ in range(3))
        y = self.ops.attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(2 * y + x)


class Mlp(nn.Module):
    """Two linear layers of equal width with GELU between, over [B, N, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP with shortcuts over [B, N, width]; one norm serves before both."""

    def __init__(self, ops: Ops, config: TutorialViTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(ops, config)
        self.mlp = Mlp(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm(x)) + x
        return self.mlp(self.norm(x)) + x


class TutorialViT(nn.Module):
    """Images [B, 3, H, W] at one resolution to logits [B, num_classes]; 2 classes in the post.

    The post has a parameter for the number of blocks and then builds and calls one (under a wrong name): the
    config of depth 1 is that literal network. No dropout: the post's rate is 0.

    Raises: ValueError when the resolution, or the image given to forward, does not fit.
    """

    def __init__(self, ops: Ops, config: TutorialViTConfig, resolution: Resolution, num_classes: int) -> None:
        super().__init__()
        if any(side < 1 or side % PATCH for side in resolution):
            raise ValueError(f"resolution {format_resolution(resolution)} is not a positive multiple of {PATCH} px")
        self.resolution = resolution
        self.grid = (resolution[0] // PATCH, resolution[1] // PATCH)
        self.patch_embed = nn.Conv2d(3, config.width, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.rand(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + math.prod(self.grid), config.width))
        self.blocks = nn.Sequential(*(Block(ops, config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.resolution:
            raise ValueError(
                f"image of shape {list(x.shape)} given to a model built for {format_resolution(self.resolution)}"
            )
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x)[:, 0]))

    def resize_state_dict(self, state: dict[str, Tensor], source: Resolution | None = None) -> dict[str, Tensor]:
        """The state with its position table resampled to this model's grid, as `resample_positions` does.

        Args:
            source: (height, width) that `state` was made for; by default told from the table's size.

        Raises: ValueError when the table's grid cannot be known.
        """
        given = source and (source[0] // PATCH, source[1] // PATCH)
        return {**state, "pos_embed": resample_positions(state["pos_embed"], 1, PUBLISHED_GRID, self.grid, given)}


VIT_CONFIGS: dict[str, TutorialViTConfig] = {
    "tutorial_vit": TutorialViTConfig(),
    "tutorial_vit_depth1": TutorialViTConfig(depth=1),
}

_CONV = MBConvConfig(
    pool="max3",
    squeeze_activation="gelu",
    expand_from="input",
    squeeze_from="input",
    squeeze_bias=False,
    pre_norm=False,
    output_bias=False,
    output_norm=True,
    always_project=True,
)
_TRANSFORMER = TransformerConfig(
    pool="max3",
    attention_width=256,
    qkv_bias=False,
    shortcut_bias=False,
    always_project=True,
    hidden_from="input",
    norm_before_pool=False,
    norm_eps=1e-5,
)


def _tutorial(config: coatnet.CoAtNetConfig, pre_norm: bool) -> coatnet.CoAtNetConfig:
    widths = tuple(1026 if width == 1024 else width for width in config.widths)
    return replace(
        config,
        widths=widths,
        conv=replace(_CONV, pre_norm=pre_norm),
        transformer=_TRANSFORMER,
        stem_output_norm=True,
        head="bare",
        drop_path=0.0,
    )


COATNET_CONFIGS: dict[str, coatnet.CoAtNetConfig] = {
    **{f"tutorial_{name}": _tutorial(config, pre_norm=False) for name, config in coatnet.PAPER.items()},
    **{f"tutorial_{name}_prenorm": _tutorial(config, pre_norm=True) for name, config in coatnet.PAPER.items()},
}


def _build(config: TutorialViTConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    return TutorialViT(ops, config, resolution, num_classes)


MODELS: dict[str, ModelSpec] = {
    **coatnet.specs(COATNET_CONFIGS, Preprocessing()),
    **{
        name: ModelSpec(build=partial(_build, config), resolution=(224, 224), preprocessing=Preprocessing())
        for name, config in VIT_CONFIGS.items()
    },
}

__all__ = ["COATNET_CONFIGS", "MODELS", "VIT_CONFIGS", "TutorialViT", "TutorialViTConfig"]
