"""TNT: transformer in transformer (arXiv:2103.00112).

Each 16x16 patch is a sentence of 4x4 words. Every block lets the words of a patch attend to each other, adds them
to their patch, then lets the patches attend. Parameter names and shapes are timm's. The authors' code
(huawei-noah/Efficient-AI-Backbones, tnt_pytorch) has other names for the same tensors, and one more: `outer_tokens`,
zeros of [1, 196, width] that are never read, left out here, with which its files count 23.84 M and 65.55 M parameters.
`tnt_s_legacy_patch16_224` is the network of timm's first release, another one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.drop_path import DropPath
from vitbench.models.resample import resample_positions
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops

PATCH = 16
WORD_STRIDE = 4
WORDS_PER_SIDE = PATCH // WORD_STRIDE
WORDS = WORDS_PER_SIDE**2
PUBLISHED_GRID = (14, 14)
_MLP_RATIO = 4


@dataclass(frozen=True)
class TNTConfig:
    """Sizes of one TNT; `drop_path` is the last block's rate, in training only.

    legacy: words see across the borders of their patch (the image is convolved whole before it is cut), and words
        join their patch through a norm over each word and a biased projection, without a norm after it.
    """

    width: int
    heads: int
    word_width: int
    word_heads: int = 4
    depth: int = 12
    drop_path: float = 0.1
    legacy: bool = False


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, width]; q, k and v have no bias."""

    def __init__(self, ops: Ops, width: int, heads: int) -> None:
        super().__init__()
        self.ops, self.heads = ops, heads
        self.qk = nn.Linear(width, 2 * width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (part.transpose(1, 2) for part in self.qk(x).unflatten(-1, (2, self.heads, -1)).unbind(2))
        v = self.v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.proj(self.ops.attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU between, over [B, N, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention among the words of each patch, their way into the patch, attention among the patches.

    Drop-path acts on the four residual branches and not on the words' way into the patch.
    """

    def __init__(self, ops: Ops, config: TNTConfig, drop_path: float) -> None:
        super().__init__()
        inner, outer = config.word_width, config.width
        self.norm_in = nn.LayerNorm(inner)
        self.attn_in = Attention(ops, inner, config.word_heads)
        self.norm_mlp_in = nn.LayerNorm(inner)
        self.mlp_in = Mlp(inner)
        self.norm1_proj = nn.LayerNorm(inner if config.legacy else WORDS * inner)
        self.proj = nn.Linear(WORDS * inner, outer, bias=config.legacy)
        self.norm2_proj = None if config.legacy else nn.LayerNorm(outer)
        self.norm_out = nn.LayerNorm(outer)
        self.attn_out = Attention(ops, outer, config.heads)
        self.norm_mlp = nn.LayerNorm(outer)
        self.mlp = Mlp(outer)
        self.drop_path = DropPath(drop_path)

    def forward(self, words: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """words: [B * N, 16, word width]; patches: [B, 1 + N, width], the class token first. Returns both anew."""
        words = words + self.drop_path(self.attn_in(self.norm_in(words)))
        words = words + self.drop_path(self.mlp_in(self.norm_mlp_in(words)))
        token, rest = patches.split([1, patches.shape[1] - 1], dim=1)
        patches = torch.cat([token, rest + self._sentences(words, len(patches))], dim=1)
        patches = patches + self.drop_path(self.attn_out(self.norm_out(patches)))
        return words, patches + self.drop_path(self.mlp(self.norm_mlp(patches)))

    def _sentences(self, words: Tensor, batch: int) -> Tensor:
        """[B * N, 16, word width] to what is added to the patches, [B, N, width]."""
        if self.norm2_proj is None:
            return self.proj(self.norm1_proj(words).reshape(batch, -1, self.proj.in_features))
        return self.norm2_proj(self.proj(self.norm1_proj(words.reshape(batch, -1, self.proj.in_features))))


class WordEmbed(nn.Module):
    """[B, 3, H, W] to the words of its patches, [B * N, 16, word width]."""

    def __init__(self, config: TNTConfig) -> None:
        super().__init__()
        self.legacy = config.legacy
        self.proj = nn.Conv2d(3, config.word_width, 7, WORD_STRIDE, 3)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """positions: [1, word width, 4, 4], added to every patch."""
        x = _cut(self.proj(x), WORDS_PER_SIDE) if self.legacy else self.proj(_cut(x, PATCH))
        return (x + positions).flatten(2).transpose(1, 2)


def _cut(x: Tensor, side: int) -> Tensor:
    """[B, C, h * side, w * side] to its squares in row-major order, [B * h * w, C, side, side]."""
    squares = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # [B, C, h, side, w, side]
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


class TNT(nn.Module):
    """Images [B, 3, H, W] at one resolution to logits [B, num_classes].

    Raises: ValueError when the resolution, or the image given to forward, does not fit.
    """

    def __init__(self, ops: Ops, config: TNTConfig, resolution: Resolution, num_classes: int) -> None:
        super().__init__()
        if any(side < 1 or side % PATCH for side in resolution):
            raise ValueError(f"resolution {format_resolution(resolution)} is not a positive multiple of {PATCH} px")
        self.resolution = resolution
        self.grid = (resolution[0] // PATCH, resolution[1] // PATCH)
        inner, outer = config.word_width, config.width
        self.pixel_embed = WordEmbed(config)
        self.pixel_pos = nn.Parameter(torch.empty(1, inner, WORDS_PER_SIDE, WORDS_PER_SIDE))
        self.norm1_proj = nn.LayerNorm(WORDS * inner)
        self.proj = nn.Linear(WORDS * inner, outer)
        self.norm2_proj = nn.LayerNorm(outer)
        self.cls_token = nn.Parameter(torch.empty(1, 1, outer))
        self.patch_pos = nn.Parameter(torch.empty(1, 1 + math.prod(self.grid), outer))
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(ops, config, config.drop_path * i / last) for i in range(config.depth))
        self.norm = nn.LayerNorm(outer)
        self.head = nn.Linear(outer, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.resolution:
            raise ValueError(
                f"image of shape {list(x.shape)} given to a model built for {format_resolution(self.resolution)}"
            )
        batch = len(x)
        words = self.pixel_embed(x, self.pixel_pos)
        patches = self.norm2_proj(self.proj(self.norm1_proj(words.reshape(batch, -1, self.proj.in_features))))
        patches = torch.cat([self.cls_token.expand(batch, -1, -1), patches], dim=1) + self.patch_pos
        for block in self.blocks:
            words, patches = block(words, patches)
        return self.head(self.norm(patches)[:, 0])

    def resize_state_dict(self, state: dict[str, Tensor], source: Resolution | None = None) -> dict[str, Tensor]:
        """The state with the patches' position table resampled to this model's grid, as `resample_positions` does.

        Args:
            source: (height, width) that `state` was made for; by default told from the table's size.

        Raises: ValueError when the table's grid cannot be known.
        """
        given = source and (source[0] // PATCH, source[1] // PATCH)
        return {**state, "patch_pos": resample_positions(state["patch_pos"], 1, PUBLISHED_GRID, self.grid, given)}


def _initialise(module: nn.Module) -> None:
    """The authors' start; they truncate at 100 standard deviations, so never."""
    if isinstance(module, TNT):
        for table in (module.pixel_pos, module.patch_pos, module.cls_token):
            nn.init.normal_(table, std=0.02)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


CONFIGS: dict[str, TNTConfig] = {
    "tnt_s_patch16_224": TNTConfig(384, 6, 24),
    "tnt_b_patch16_224": TNTConfig(640, 10, 40),
    "tnt_s_legacy_patch16_224": TNTConfig(384, 6, 24, legacy=True),
}


def _build(config: TNTConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    return TNT(ops, config, resolution, num_classes)


_HALF = (0.5, 0.5, 0.5)
MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(
        build=partial(_build, config),
        resolution=(224, 224),
        preprocessing=Preprocessing(mean=_HALF, std=_HALF, crop_pct=0.9),
    )
    for name, config in CONFIGS.items()
}

__all__ = ["CONFIGS", "MODELS", "TNT", "TNTConfig"]
