"""ConViT: vision transformers with soft convolutional inductive biases (arXiv:2103.10697).

Ten blocks of gated positional self-attention over the patches, then the class token joins and two ordinary blocks
follow. Parameter names and shapes are those of facebookresearch/convit, which timm shares. Its division of the
attention by its row sums is left out: the rows of a mixture of two softmaxes sum to one already.
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
from vitbench.models.resample import Grid, resample_positions
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops

PATCH = 16
PUBLISHED_GRID = (14, 14)
_MLP_RATIO = 4
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class ConViTConfig:
    """Sizes of one ConViT; `drop_path` is the last block's rate, in training only.

    heads: a square number, whose root is the side of the window that the heads look at when training starts.
    """

    heads: int
    head_dim: int
    gated_blocks: int = 10
    plain_blocks: int = 2
    drop_path: float = 0.1

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


def offsets(grid: Grid, like: Tensor) -> Tensor:
    """(dx, dy, dx^2 + dy^2) from every query to every key of a grid: [N, N, 3] in the dtype and place of `like`."""
    h, w = grid
    y = torch.arange(h, device=like.device, dtype=torch.float32).repeat_interleave(w)
    x = torch.arange(w, device=like.device, dtype=torch.float32).repeat(h)
    dx, dy = x[None, :] - x[:, None], y[None, :] - y[:, None]
    return torch.stack([dx, dy, dx * dx + dy * dy], dim=-1).to(like.dtype)


def _logits(weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    """[N, N, 3] to [H, N, N]."""
    return F.linear(offsets, weight, bias).permute(2, 0, 1)


class GatedAttention(nn.Module):
    """Self-attention over [B, N, width] that each head mixes, by its gate, with attention by position alone."""

    def __init__(self, ops: Ops, config: ConViTConfig) -> None:
        super().__init__()
        self.ops, self.heads = ops, config.heads
        self.qk = nn.Linear(config.width, 2 * config.width, bias=False)
        self.v = nn.Linear(config.width, config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width)
        self.pos_proj = nn.Linear(3, config.heads)
        self.gating_param = nn.Parameter(torch.empty(config.heads))

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        both, v = self.ops.linears(x, self.qk, self.v)
        q, k = (part.transpose(1, 2) for part in both.unflatten(-1, (2, self.heads, -1)).unbind(2))
        v = v.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        layer = self.pos_proj
        positional = self.ops.derive(layer, "positional", _logits, layer.weight, layer.bias, offsets)
        y = self.ops.gated_attention(q, k, v, positional, self.gating_param)
        return self.proj(y.transpose(1, 2).flatten(2))


class Attention(nn.Module):
    """Multi-head self-attention over [B, N, width]."""

    def __init__(self, ops: Ops, config: ConViTConfig) -> None:
        super().__init__()
        self.ops, self.heads = ops, config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, N, 3, H, D]
        q, k, v = (part.transpose(1, 2) for part in packed.unbind(2))
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
    """Pre-norm transformer block over [B, N, width]; `offsets` is given to gated attention, None to plain."""

    def __init__(self, ops: Ops, config: ConViTConfig, gated: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.attn = GatedAttention(ops, config) if gated else Attention(ops, config)
        self.norm2 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.mlp = Mlp(config.width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *offsets: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), *offsets))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """[B, 3, H, W] to [B, h * w, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ConViT(nn.Module):
    """Images [B, 3, H, W] at one resolution to logits [B, num_classes].

    Positions follow the grid, so that any resolution works, square or not; the authors' code knows square ones.

    Raises: ValueError when the resolution, or the image given to forward, does not fit, or the number of heads
        is no square.
    """

    def __init__(self, ops: Ops, config: ConViTConfig, resolution: Resolution, num_classes: int) -> None:
        super().__init__()
        if math.isqrt(config.heads) ** 2 != config.heads:
            raise ValueError(f"{config.heads} heads make no square window; take 1, 4, 9 or 16")
        if any(side < 1 or side % PATCH for side in resolution):
            raise ValueError(f"resolution {format_resolution(resolution)} is not a positive multiple of {PATCH} px")
        self.ops, self.resolution = ops, resolution
        self.grid = (resolution[0] // PATCH, resolution[1] // PATCH)
        self.patch_embed = PatchEmbed(config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid), config.width))
        self.gated_blocks = config.gated_blocks
        depth = config.gated_blocks + config.plain_blocks
        self.blocks = nn.ModuleList(
            Block(ops, config, i < config.gated_blocks, config.drop_path * i / max(depth - 1, 1)) for i in range(depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.head = nn.Linear(config.width, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.resolution:
            raise ValueError(
                f"image of shape {list(x.shape)} given to a model built for {format_resolution(self.resolution)}"
            )
        x = self.patch_embed(x) + self.pos_embed
        key = (self.grid, x.dtype, x.device)
        between = self.ops.derive(self, "offsets", lambda: offsets(self.grid, x), key=key)
        for block in self.blocks[: self.gated_blocks]:
            x = block(x, between)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks[self.gated_blocks :]:
            x = block(x)
        return self.head(self.norm(x)[:, 0])

    def resize_state_dict(self, state: dict[str, Tensor], source: Resolution | None = None) -> dict[str, Tensor]:
        """The state with its position table resampled to this model's grid, as `resample_positions` does.

        Args:
            source: (height, width) that `state` was made for; by default told from the table's size.

        Raises: ValueError when the table's grid cannot be known.
        """
        given = source and (source[0] // PATCH, source[1] // PATCH)
        return {**state, "pos_embed": resample_positions(state["pos_embed"], 0, PUBLISHED_GRID, self.grid, given)}


def _initialise(module: nn.Module) -> None:
    """The authors' start (their normal is truncated at 100 standard deviations, so never).

    Gated attention starts as a convolution: values pass unchanged and each head looks at one cell of a window.
    """
    if isinstance(module, ConViT):
        nn.init.normal_(module.cls_token, std=0.02)
        nn.init.normal_(module.pos_embed, std=0.02)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, GatedAttention):
        nn.init.eye_(module.v.weight)
        nn.init.ones_(module.gating_param)
        side = math.isqrt(module.heads)
        centre = (side - 1) / 2 if side % 2 == 0 else side // 2
        cells = [(x, y) for x in range(side) for y in range(side)]
        rows = [[2 * (x - centre), 2 * (y - centre), -1] for x, y in cells]
        with torch.no_grad():
            module.pos_proj.weight.copy_(torch.tensor(rows))


CONFIGS: dict[str, ConViTConfig] = {
    "convit_tiny": ConViTConfig(4, 48),
    "convit_small": ConViTConfig(9, 48),
    "convit_base": ConViTConfig(16, 48),
    "convit_tiny_plus": ConViTConfig(4, 64),
    "convit_small_plus": ConViTConfig(9, 64),
    "convit_base_plus": ConViTConfig(16, 64),
}


def _build(config: ConViTConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    return ConViT(ops, config, resolution, num_classes)


MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(build=partial(_build, config), resolution=(224, 224), preprocessing=Preprocessing())
    for name, config in CONFIGS.items()
}

__all__ = ["CONFIGS", "MODELS", "ConViT", "ConViTConfig", "offsets"]
