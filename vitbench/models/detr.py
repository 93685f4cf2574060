"""DETR (arXiv:2005.12872): a ResNet, a post-norm transformer encoder and decoder, 100 queries that become boxes.

Parameter names and shapes are the official repository's. Its nn.MultiheadAttention is written out here, because
torch's takes a fused path in evaluation that counters do not see, and because attention is an operation of `Ops`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.detection import MLP, Detections
from vitbench.models.resnet import Bottleneck, ResNetConfig, ResNetFeatures
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops

_TEMPERATURE = 10_000
#: Scale of every residual branch at first. Statistics of a trained backbone keep its sums in bounds; frozen
#: norms at 1 and 0 would let them grow from block to block.
_BRANCH_SCALE = 0.2


@dataclass(frozen=True)
class DETRConfig:
    """Sizes of one DETR; `dropout` acts in training only, on attention's probabilities too."""

    backbone: ResNetConfig
    width: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    hidden: int = 2048
    queries: int = 100
    dropout: float = 0.1


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm whose statistics, weight and bias are buffers, so never trained nor updated."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


class Backbone(nn.Module):
    """Images to the last map of a ResNet with frozen norms; its root and first stage are frozen too."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.body = ResNetFeatures(config, norm=FrozenBatchNorm2d)
        self.body.conv1.requires_grad_(False)
        self.body.layer1.requires_grad_(False)
        for module in self.body.modules():
            if isinstance(module, Bottleneck):
                nn.init.constant_(module.bn3.get_buffer("weight"), _BRANCH_SCALE)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def sine_positions(valid: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Sines and cosines of a cell's place among the valid ones of its column (first half) and row (second half).

    Args:
        valid: [B, h, w], false where there is padding.

    Returns: [B, h * w, width], computed in fp32 or better.
    """
    exact = torch.promote_types(dtype, torch.float32)
    pairs = torch.arange(width // 4, dtype=exact, device=valid.device)
    frequencies = _TEMPERATURE ** (-4 * pairs / width)
    halves = []
    for axis in (1, 2):
        place = valid.cumsum(axis, dtype=exact)
        last = place.narrow(axis, place.shape[axis] - 1, 1)
        angles = (place / (last + 1e-6) * (2 * math.pi)).unsqueeze(-1) * frequencies
        halves.append(torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(3))
    return torch.cat(halves, dim=3).flatten(1, 2).to(dtype)


class Attention(nn.Module):
    """Multi-head attention with the parameters of nn.MultiheadAttention, over [B, N, width]."""

    def __init__(self, ops: Ops, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.ops, self.heads = ops, heads
        self.dropout = nn.Dropout(dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """query: [B, N, width]; key, value: [B, M, width]; bias: broadcastable to [B, heads, N, M]."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, shift).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x, weight, shift in zip((query, key, value), weights, biases, strict=True)
        )
        # The module only says how much, so that randomness can be switched off as any dropout's.
        rate = self.dropout.p if self.dropout.training else 0.0
        return self.out_proj(self.ops.attention(q, k, v, bias, dropout=rate).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network over [B, N, width], a norm after each sum."""

    def __init__(self, ops: Ops, config: DETRConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = Attention(ops, width, config.heads, config.dropout)
        self.linear1 = nn.Linear(width, config.hidden)
        self.linear2 = nn.Linear(config.hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, positions: Tensor, bias: Tensor | None) -> Tensor:
        placed = x + positions
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x, bias)))
        y = self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True)))
        return self.norm2(x + self.dropout(y))


class DecoderLayer(nn.Module):
    """Self-attention of the queries [B, Q, width], attention to the image's [B, N, width], a feed-forward network."""

    def __init__(self, ops: Ops, config: DETRConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = Attention(ops, width, config.heads, config.dropout)
        self.multihead_attn = Attention(ops, width, config.heads, config.dropout)
        self.linear1 = nn.Linear(width, config.hidden)
        self.linear2 = nn.Linear(config.hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """queries: positions of x; keys: `values` with theirs added; bias: of the padded keys."""
        placed = x + queries
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x)))
        x = self.norm2(x + self.dropout(self.multihead_attn(x + queries, keys, values, bias)))
        y = self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True)))
        return self.norm3(x + self.dropout(y))


class Encoder(nn.Module):
    """Layers, and no norm after the last."""

    def __init__(self, ops: Ops, config: DETRConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(ops, config) for _ in range(config.encoder_layers))

    def forward(self, x: Tensor, positions: Tensor, bias: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, positions, bias)
        return x


class Decoder(nn.Module):
    """Layers, and one norm that the output of each goes through on its way out."""

    def __init__(self, ops: Ops, config: DETRConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(ops, config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """queries: [B, Q, width]. Returns [layers, B, Q, width]."""
        x = torch.zeros_like(queries)
        outputs = []
        for layer in self.layers:
            x = layer(x, queries, keys, values, bias)
            outputs.append(self.norm(x))
        return torch.stack(outputs)


class Transformer(nn.Module):
    """Weights of all its layers start Xavier uniform."""

    def __init__(self, ops: Ops, config: DETRConfig) -> None:
        super().__init__()
        self.encoder = Encoder(ops, config)
        self.decoder = Decoder(ops, config)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Tensor, positions: Tensor, queries: Tensor, bias: Tensor | None) -> Tensor:
        """x: [B, N, width]; positions: broadcastable to it; queries: [Q, width]. Returns [layers, B, Q, width]."""
        memory = self.encoder(x, positions, bias)
        return self.decoder(queries.expand(len(x), -1, -1), memory + positions, memory, bias)


class DETR(nn.Module):
    """Images of any size to `Detections` with every decoder layer's, as the official code returns for its losses."""

    def __init__(self, ops: Ops, config: DETRConfig, num_classes: int) -> None:
        super().__init__()
        self.width = config.width
        backbone = Backbone(config.backbone)
        self.backbone = nn.Sequential(backbone)
        self.input_proj = nn.Conv2d(backbone.body.out_channels, config.width, 1)
        self.transformer = Transformer(ops, config)
        self.query_embed = nn.Embedding(config.queries, config.width)
        self.class_embed = nn.Linear(config.width, num_classes + 1)
        self.bbox_embed = MLP(config.width, 4)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Detections:
        """images: [B, 3, H, W]; mask: [B, H, W], true where they are padded, as `pad_batch` makes it."""
        x = self.input_proj(self.backbone(images))
        size = x.shape[-2:]
        bias = None
        if mask is None:
            valid = torch.ones(1, *size, dtype=torch.bool, device=x.device)
        else:
            padded = F.interpolate(mask[:, None].float(), size=size)[:, 0] > 0
            bias = torch.zeros_like(padded, dtype=x.dtype).masked_fill(padded, -math.inf)
            bias = bias.flatten(1)[:, None, None]  # [B, 1, 1, N]
            valid = ~padded
        positions = sine_positions(valid, self.width, x.dtype)
        found = self.transformer(x.flatten(2).transpose(1, 2), positions, self.query_embed.weight, bias)
        layers: list[Detections] = [
            {"pred_logits": logits, "pred_boxes": boxes}
            for logits, boxes in zip(self.class_embed(found), self.bbox_embed(found).sigmoid(), strict=True)
        ]
        return {**layers[-1], "aux_outputs": layers[:-1]}


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)

CONFIGS: dict[str, DETRConfig] = {
    "detr_resnet50": DETRConfig(ResNetConfig(R50, bottleneck=True)),
    "detr_resnet50_dc5": DETRConfig(ResNetConfig(R50, bottleneck=True, dilated=True)),
    "detr_resnet101": DETRConfig(ResNetConfig(R101, bottleneck=True)),
    "detr_resnet101_dc5": DETRConfig(ResNetConfig(R101, bottleneck=True, dilated=True)),
}


def _build(config: DETRConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    if min(resolution) < 1:
        raise ValueError(f"resolution {format_resolution(resolution)} is not positive in both sides")
    return DETR(ops, config, num_classes)


MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(
        build=partial(_build, config),
        resolution=(800, 1066),
        preprocessing=Preprocessing(crop_pct=1.0, interpolation="bilinear"),
        num_classes=91,
    )
    for name, config in CONFIGS.items()
}

__all__ = ["CONFIGS", "DETR", "MODELS", "DETRConfig"]
