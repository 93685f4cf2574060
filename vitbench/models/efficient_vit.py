"""Efficient ViT and Convolutional Cross ViT on EfficientNet-B0 (arXiv:2107.02612): one logit, "is this face a fake".

Not the models that others call EfficientViT. Parameter names and shapes are those of the authors' release, so is
the EfficientNet inside (SAME padding, BatchNorm epsilon 1e-3). What the release leaves unused is kept where its
weights hold it, and only there: B0's own classifier, the rows of a position table beyond the tokens, and, in the large
branch of the cross model, thirteen of B0's sixteen blocks and its head.

Defect of the released Efficient ViT: it slices its position table by the size of the batch, so both tokens of an image
get the row of the image's place in the batch, and batches above 32 fail. Here row i belongs to token i;
`efficient_vit_b0_literal` does as the release does, for who wants the outputs that its weights gave there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.efficientnet import (
    HEAD_WIDTH,
    STEM_WIDTH,
    EfficientNetConfig,
    Names,
    Release,
    conv,
    initialise,
    make_stages,
)
from vitbench.models.hybrid_resnet import pad_same
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops

_NAMES = Names(
    depthwise=("_depthwise_conv", "_bn1"),
    squeeze="",
    reduce="_se_reduce",
    excite="_se_expand",
    projection=("_project_conv", "_bn2"),
    expansion=("_expand_conv", "_bn0"),
)
#: The port of the TensorFlow reference that the authors use.
PORT = Release(first=_NAMES, other=_NAMES, same_padding=True, eps=1e-3, momentum=0.01)
B0 = EfficientNetConfig(1.0, 1.0, dropout=0.2)
_CLASSES_OF_B0 = 1000


class Features(nn.Module):
    """An EfficientNet's map: [B, 3, H, W] to [B, channels, H / stride, W / stride], rounded up.

    blocks: how many run, without the head; None runs all and the head. All are there, and so is the classifier,
        which never runs.
    """

    def __init__(self, ops: Ops, config: EfficientNetConfig, blocks: int | None) -> None:
        super().__init__()
        stem, head = config.scale(STEM_WIDTH), config.scale(HEAD_WIDTH)
        stages = make_stages(ops, config, PORT)
        width = config.scale(config.stages[-1].width)
        self.ops, self.blocks = ops, blocks
        self._conv_stem = nn.Conv2d(3, stem, 3, stride=2, bias=False)
        self._bn0 = PORT.norm(stem)
        self._blocks = nn.ModuleList(block for stage in stages for block in stage)
        self._conv_head = conv(width, head)
        self._bn1 = PORT.norm(head)
        self._fc = nn.Linear(head, _CLASSES_OF_B0)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ops.conv_norm_act(pad_same(x, 3, 2), self._conv_stem, self._bn0, "silu")
        for block in self._blocks[: self.blocks]:
            x = block(x)
        return x if self.blocks is not None else self.ops.conv_norm_act(x, self._conv_head, self._bn1, "silu")


@dataclass(frozen=True)
class Branch:
    """A feature map cut into patches, and the transformer over them.

    channels, stride: of the map, in pixels; `blocks` as `Features` has it.
    patch: side in cells of the map. rows: of the position table, of which the first are used.
    """

    blocks: int | None
    channels: int
    stride: int
    patch: int
    width: int
    depth: int
    rows: int

    def tokens(self, resolution: Resolution) -> int:
        """Patches and the class token; raises ValueError at a resolution that does not fit."""
        side = self.stride * self.patch
        if any(pixels < 1 or pixels % side for pixels in resolution):
            raise ValueError(f"resolution {format_resolution(resolution)} is not a positive multiple of {side} px")
        tokens = 1 + (resolution[0] // side) * (resolution[1] // side)
        if tokens > self.rows:
            raise ValueError(
                f"resolution {format_resolution(resolution)} makes {tokens} tokens, more than {self.rows} positions"
            )
        return tokens


def cut_patches(x: Tensor, patch: int) -> Tensor:
    """[B, C, h, w] to [B, h * w / patch^2, patch^2 * C]: patches in row-major order, cells too, channels last."""
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


@dataclass(frozen=True)
class Heads:
    """Attention's shape, the hidden width of the feed-forward layers, and where dropout acts."""

    heads: int = 8
    head_width: int = 64
    hidden: int = 2048
    dropout: float = 0.15
    hidden_dropout: float = 0.0

    @property
    def inner(self) -> int:
        return self.heads * self.head_width


class Attention(nn.Module):
    """Multi-head attention of x [B, N, width] over `context` [B, M, width]; without biases but the output's.

    packed: queries, keys and values are one layer, as in Efficient ViT, else keys and values are.
    """

    def __init__(self, ops: Ops, width: int, heads: Heads, packed: bool) -> None:
        super().__init__()
        self.ops, self.heads, self.packed = ops, heads.heads, packed
        if packed:
            self.to_qkv = nn.Linear(width, 3 * heads.inner, bias=False)
        else:
            self.to_q = nn.Linear(width, heads.inner, bias=False)
            self.to_kv = nn.Linear(width, 2 * heads.inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads.inner, width), nn.Dropout(heads.dropout))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Without a context x attends to itself; with one, to itself and to the context."""
        if self.packed:
            parts = self.to_qkv(x).chunk(3, dim=-1)
        else:
            keys = x if context is None else torch.cat([x, context], dim=1)
            parts = (self.to_q(x), *self.to_kv(keys).chunk(2, dim=-1))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.to_out(self.ops.attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with GELU between; the release's names count activation and dropout as layers 1, 2 and 4."""

    def __init__(self, width: int, heads: Heads) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, heads.hidden),
            nn.GELU(),
            nn.Dropout(heads.hidden_dropout),
            nn.Linear(heads.hidden, width),
            nn.Dropout(heads.hidden_dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """`fn` of the normalised input; a context is passed on as it is."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor, *context: Tensor) -> Tensor:
        return self.fn(self.norm(x), *context)


class Transformer(nn.Module):
    """Pre-norm encoder over [B, N, width], with a norm at its end or without."""

    def __init__(self, ops: Ops, width: int, depth: int, heads: Heads, packed: bool, final_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(width, Attention(ops, width, heads, packed)),
                    PreNorm(width, FeedForward(width, heads)),
                ]
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width) if final_norm else None

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            attention, feed_forward = layer.children()
            x = x + attention(x)
            x = x + feed_forward(x)
        return x if self.norm is None else self.norm(x)


@dataclass(frozen=True)
class EfficientViTConfig:
    """Efficient ViT: one branch, whose class token goes through two more layers.

    literal: row i of the position table is added to both tokens of image i, as in the release.
    """

    branch: Branch
    heads: Heads = Heads()
    backbone: EfficientNetConfig = B0
    trained_blocks: int = 3
    literal: bool = False


class EfficientViT(nn.Module):
    """Images [B, 3, H, W] to logits [B, num_classes]. All blocks of B0 but the last three are frozen.

    Raises: ValueError when `resolution`, or the size of an image given to forward, does not fit, or the batch
        of a literal one.
    """

    def __init__(self, ops: Ops, config: EfficientViTConfig, resolution: Resolution, num_classes: int) -> None:
        super().__init__()
        branch, width, hidden = config.branch, config.branch.width, config.heads.hidden
        branch.tokens(resolution)
        self.branch, self.literal = branch, config.literal
        self.efficient_net = Features(ops, config.backbone, branch.blocks)
        for block in self.efficient_net._blocks[: -config.trained_blocks]:
            block.requires_grad_(False)
        self.pos_embedding = nn.Parameter(torch.randn(branch.rows, 1, width))
        self.patch_to_embedding = nn.Linear(branch.patch**2 * branch.channels, width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.dropout = nn.Dropout(config.heads.dropout)
        self.transformer = Transformer(ops, width, branch.depth, config.heads, packed=True, final_norm=False)
        self.mlp_head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        count = self.branch.tokens((int(x.shape[2]), int(x.shape[3])))
        patches = self.patch_to_embedding(cut_patches(self.efficient_net(x), self.branch.patch))
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        if self.literal:
            if len(x) > self.branch.rows:
                raise ValueError(f"batch {len(x)} has more images than the position table rows, {self.branch.rows}")
            tokens = tokens + self.pos_embedding[: len(x)]
        else:
            tokens = tokens + self.pos_embedding[:count].transpose(0, 1)
        return self.mlp_head(self.transformer(self.dropout(tokens))[:, 0])


class Embedder(nn.Module):
    """Images to the tokens [B, 1 + patches, width] of one branch of the cross model, class token first."""

    def __init__(
        self, ops: Ops, branch: Branch, backbone: EfficientNetConfig, dropout: float, resolution: Resolution
    ) -> None:
        super().__init__()
        branch.tokens(resolution)
        self.branch = branch
        self.efficient_net = Features(ops, backbone, branch.blocks)
        # Number 0 of the release cuts the patches and has no weights.
        self.to_patch_embedding = nn.Sequential(
            nn.Identity(), nn.Linear(branch.patch**2 * branch.channels, branch.width)
        )
        self.pos_embedding = nn.Parameter(torch.randn(1, branch.rows, branch.width))
        self.cls_token = nn.Parameter(torch.randn(1, 1, branch.width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        count = self.branch.tokens((int(x.shape[2]), int(x.shape[3])))
        patches = self.to_patch_embedding(cut_patches(self.efficient_net(x), self.branch.patch))
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1)
        return self.dropout(tokens + self.pos_embedding[:, :count])


class Projected(nn.Module):
    """`fn` in another width, with a linear layer on the way in and one on the way out."""

    def __init__(self, width: int, inner: int, fn: nn.Module) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, inner)
        self.fn = fn
        self.project_out = nn.Linear(inner, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.project_out(self.fn(self.project_in(x), context))


class CrossTransformer(nn.Module):
    """Rounds in which each branch's class token attends to itself and the other's patches, small branch first."""

    def __init__(self, ops: Ops, small: int, large: int, rounds: int, heads: Heads) -> None:
        super().__init__()

        def attend(width: int, inner: int) -> Projected:
            return Projected(width, inner, PreNorm(inner, Attention(ops, inner, heads, packed=False)))

        self.layers = nn.ModuleList(nn.ModuleList([attend(small, large), attend(large, small)]) for _ in range(rounds))

    def forward(self, small: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
        small_class, small_patches = small[:, :1], small[:, 1:]
        large_class, large_patches = large[:, :1], large[:, 1:]
        for layer in self.layers:
            to_large, to_small = layer.children()
            small_class = small_class + to_large(small_class, large_patches)
            large_class = large_class + to_small(large_class, small_patches)
        return torch.cat([small_class, small_patches], dim=1), torch.cat([large_class, large_patches], dim=1)


@dataclass(frozen=True)
class CrossViTConfig:
    """Convolutional Cross ViT: `layers` times both transformers and `rounds` of cross-attention."""

    small: Branch
    large: Branch
    heads: Heads = Heads(hidden_dropout=0.15)
    backbone: EfficientNetConfig = B0
    layers: int = 4
    rounds: int = 2


class ConvCrossViT(nn.Module):
    """Images [B, 3, H, W] to logits [B, num_classes], the sum of both branches' own.

    Raises: ValueError when `resolution`, or the size of an image given to forward, does not fit.
    """

    def __init__(self, ops: Ops, config: CrossViTConfig, resolution: Resolution, num_classes: int) -> None:
        super().__init__()
        small, large, heads = config.small, config.large, config.heads
        self.sm_image_embedder = Embedder(ops, small, config.backbone, heads.dropout, resolution)
        self.lg_image_embedder = Embedder(ops, large, config.backbone, heads.dropout, resolution)
        encode = partial(Transformer, ops, heads=heads, packed=False, final_norm=True)
        layers = (
            nn.ModuleList(
                [
                    encode(small.width, small.depth),
                    encode(large.width, large.depth),
                    CrossTransformer(ops, small.width, large.width, config.rounds, heads),
                ]
            )
            for _ in range(config.layers)
        )
        self.multi_scale_encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.sm_mlp_head = nn.Sequential(nn.LayerNorm(small.width), nn.Linear(small.width, num_classes))
        self.lg_mlp_head = nn.Sequential(nn.LayerNorm(large.width), nn.Linear(large.width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        small, large = self.sm_image_embedder(x), self.lg_image_embedder(x)
        for layer in self.multi_scale_encoder["layers"].children():
            encode_small, encode_large, cross = layer.children()
            small, large = cross(encode_small(small), encode_large(large))
        return self.sm_mlp_head(small[:, 0]) + self.lg_mlp_head(large[:, 0])


EFFICIENT_VIT_B0 = EfficientViTConfig(Branch(None, 1280, 32, patch=7, width=1024, depth=6, rows=32))
CONV_CROSS_VIT_B0 = CrossViTConfig(
    small=Branch(None, 1280, 32, patch=7, width=192, depth=2, rows=1 + (224 // 7) ** 2),
    large=Branch(3, 24, 4, patch=56, width=384, depth=3, rows=1 + (224 // 56) ** 2),
)


def _spec(build: Callable[[Ops, Resolution, int], nn.Module]) -> ModelSpec:
    # The release feeds pixel values from 0 to 255 as they are, from faces that fill the picture.
    pixels = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255), crop_pct=1.0)
    return ModelSpec(build, (224, 224), pixels, num_classes=1)


def _build_efficient(config: EfficientViTConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    return EfficientViT(ops, config, resolution, num_classes)


def _build_cross(ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    return ConvCrossViT(ops, CONV_CROSS_VIT_B0, resolution, num_classes)


MODELS: dict[str, ModelSpec] = {
    "efficient_vit_b0": _spec(partial(_build_efficient, EFFICIENT_VIT_B0)),
    "efficient_vit_b0_literal": _spec(partial(_build_efficient, replace(EFFICIENT_VIT_B0, literal=True))),
    "conv_cross_vit_b0": _spec(_build_cross),
}

__all__ = ["MODELS", "ConvCrossViT", "CrossViTConfig", "EfficientViT", "EfficientViTConfig"]
