"""CMT: convolutional neural networks meet vision transformers (arXiv:2107.06263).

Four stages at strides 4, 8, 16 and 32. Every block is a depthwise convolution with a shortcut (LPU),
attention whose keys and values come from a strided depthwise reduction to the stride-32 grid (LMHSA),
and an inverted-residual feed-forward (IRFFN). Parameter names and shapes are those of the authors' code
(huawei-noah/Efficient-AI-Backbones, cmt_pytorch), whose CMT-S has 26.26 M parameters where the paper
states 25.14 M.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.drop_path import DropPath
from vitbench.models.resample import resample_grid
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops

STAGES = ("a", "b", "c", "d")
HEADS = (1, 2, 4, 8)
REDUCTIONS = (8, 4, 2, 1)
STRIDES = (4, 8, 16, 32)
HEAD_WIDTH = 1280


@dataclass(frozen=True)
class CMTConfig:
    """Sizes of one CMT; `dropout` (before the classifier) and `drop_path` (last block's) act in training only."""

    stem_width: int
    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    mlp_ratio: float
    dropout: float
    drop_path: float


def _tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h*w, C]; no copy when x is channels_last."""
    return x.flatten(2).transpose(1, 2)


def _grid(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h*w, C] -> [B, C, h, w] without a copy: contiguous tokens become a channels_last map."""
    return x.transpose(1, 2).unflatten(2, size)


class PatchEmbed(nn.Module):
    """2x2 stride-2 convolution and a LayerNorm over channels: [B, C, 2h, 2w] -> [B, C', h, w]."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_width, width, 2, 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return _grid(self.norm(_tokens(x)), (x.shape[2], x.shape[3]))


class Attention(nn.Module):
    """Lightweight multi-head attention: N queries, N / reduction^2 keys, a learned bias per pair."""

    def __init__(self, ops: Ops, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.ops, self.heads, self.reduction = ops, heads, reduction
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Sequential(nn.Conv2d(width, width, reduction, reduction, groups=width), nn.BatchNorm2d(width))

    def forward(self, x: Tensor, size: tuple[int, int], bias: Tensor) -> Tensor:
        """x: [B, N, C] with N = size[0] * size[1]; bias: [heads, N, M]. Returns [B, N, C]."""
        reduced = x
        if self.reduction > 1:
            reduced = _tokens(self.ops.conv_norm_act(_grid(x, size), *self.sr))
        k, v = map(self._split, self.ops.linears(reduced, self.k, self.v))
        q = self._split(self.q(x))
        y = self.ops.attention(q, k, v, bias)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class IRFFN(nn.Module):
    """1x1 expansion, 3x3 depthwise whose shortcut joins before the activation, 1x1 projection; BN after each."""

    def __init__(self, ops: Ops, width: int, hidden: int) -> None:
        super().__init__()
        self.ops = ops
        self.conv1 = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.proj = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.proj_bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        expand, _, norm = self.conv1
        x = self.ops.conv_act_norm(x, expand, norm, "gelu")
        return self.ops.conv_act_norm_conv(x, self.proj, self.proj_bn, "gelu", "pre", *self.conv2)


class Block(nn.Module):
    """LPU, then pre-norm attention and pre-norm IRFFN, each with a shortcut; [B, C, h, w] -> same."""

    def __init__(self, ops: Ops, width: int, heads: int, reduction: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.ops = ops
        self.proj = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(ops, width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = IRFFN(ops, width, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        x = self.ops.depthwise_conv2d(x, self.proj.weight, self.proj.bias, residual="pre")
        x = _tokens(x)
        x = self.ops.reduced_attention(x, size, bias, self.norm1, self.attn, self.drop_path)
        x = x + self.drop_path(_tokens(self.mlp(_grid(self.norm2(x), size))))
        return _grid(x, size)


class CMT(nn.Module):
    """CMT for images of exactly one resolution, which its attention-bias tables fix.

    Raises: ValueError when a side of `resolution` is not a multiple of 32.
    """

    def __init__(self, config: CMTConfig, ops: Ops, resolution: Resolution, num_classes: int = 1000) -> None:
        super().__init__()
        if any(side % STRIDES[-1] or side <= 0 for side in resolution):
            raise ValueError(
                f"resolution {format_resolution(resolution)} does not fit: "
                f"both sides must be multiples of {STRIDES[-1]}"
            )
        self.ops, self.resolution = ops, resolution
        stem = config.stem_width
        for index, (width, stride) in enumerate(((3, 2), (stem, 1), (stem, 1)), start=1):
            self.add_module(f"stem_conv{index}", nn.Conv2d(width, stem, 3, stride, 1))
            self.add_module(f"stem_norm{index}", nn.BatchNorm2d(stem))
        depth_in_all = sum(config.depths)
        rates = (config.drop_path * block / (depth_in_all - 1) for block in range(depth_in_all))
        stages = zip(STAGES, (stem, *config.widths), config.widths, config.depths, HEADS, REDUCTIONS, strict=False)
        for stage, (name, in_width, width, depth, heads, reduction) in enumerate(stages):
            make = partial(Block, ops, width, heads, reduction, int(width * config.mlp_ratio))
            self.add_module(f"patch_embed_{name}", PatchEmbed(in_width, width))
            self.add_module(f"blocks_{name}", nn.ModuleList(make(next(rates)) for _ in range(depth)))
            table = torch.randn(heads, *_pairs(resolution, stage))
            self.register_parameter(f"relative_pos_{name}", nn.Parameter(table))
        self._fc = nn.Conv2d(config.widths[-1], HEAD_WIDTH, 1)
        self._bn = nn.BatchNorm2d(HEAD_WIDTH)
        self._drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(HEAD_WIDTH, num_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, *resolution] -> logits [B, num_classes]; ValueError on another size."""
        if tuple(x.shape[2:]) != self.resolution:
            raise ValueError(
                f"input is {format_resolution((x.shape[2], x.shape[3]))}, "
                f"this model was built for {format_resolution(self.resolution)}"
            )
        for index in (1, 2, 3):
            conv, norm = self.get_submodule(f"stem_conv{index}"), self.get_submodule(f"stem_norm{index}")
            x = self.ops.conv_act_norm(x, conv, norm, "gelu")
        for name in STAGES:
            x = self.get_submodule(f"patch_embed_{name}")(x)
            bias = self.get_parameter(f"relative_pos_{name}")
            for block in self.get_submodule(f"blocks_{name}").children():
                x = block(x, bias)
        x = self.ops.conv_norm_act(x, self._fc, self._bn, "silu")
        return self.head(self._drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))

    def resize_state_dict(self, state: dict[str, Tensor], source: Resolution | None = None) -> dict[str, Tensor]:
        """`state` with its bias tables resampled (bicubic, over the query grid and over the key grid) to this model.

        Args:
            source: (height, width) that `state` was made for. By default this model's own when the tables
                already have its shapes, else a square, which is what a table's shape alone can tell.

        Raises: ValueError when the tables are not those of `source`, or of a square.
        """
        resized = dict(state)
        for stage, name in enumerate(STAGES):
            key = f"relative_pos_{name}"
            table, own = state[key], _pairs(self.resolution, stage)
            at = source
            if at is None:
                side = STRIDES[-1] * round(table.shape[-1] ** 0.5)
                at = self.resolution if tuple(table.shape[1:]) == own else (side, side)
            if tuple(table.shape[1:]) != _pairs(at, stage):
                raise ValueError(
                    f"{key} is {list(table.shape)}, at {format_resolution(at)} it would be "
                    f"{[table.shape[0], *_pairs(at, stage)]}: name the resolution of the weights"
                )
            if at != self.resolution:
                resized[key] = _resample(table, at, self.resolution, stage)
        return resized


def _pairs(resolution: Resolution, stage: int) -> tuple[int, int]:
    """(queries, keys) of a stage: its tokens, and those of the stride-32 grid."""
    height, width = resolution
    queries, keys = STRIDES[stage], STRIDES[-1]
    return (height // queries) * (width // queries), (height // keys) * (width // keys)


def _resample(table: Tensor, old: Resolution, new: Resolution, stage: int) -> Tensor:
    """[heads, N, M] at resolution `old` -> [heads, N', M'] at `new`, in the table's dtype."""

    def grid(resolution: Resolution, stride: int) -> tuple[int, int]:
        return resolution[0] // stride, resolution[1] // stride

    queries, keys = STRIDES[stage], STRIDES[-1]
    x = resample_grid(table.float(), grid(old, queries), grid(new, queries)).transpose(1, 2)
    return resample_grid(x, grid(old, keys), grid(new, keys)).transpose(1, 2).to(table.dtype).contiguous()


def _initialise(module: nn.Module) -> None:
    """The authors' start; they truncate at 100 standard deviations, so never."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


TI = CMTConfig(16, (46, 92, 184, 368), (2, 2, 10, 2), 3.6, dropout=0.1, drop_path=0.1)
XS = CMTConfig(16, (52, 104, 208, 416), (3, 3, 12, 3), 3.77, dropout=0.1, drop_path=0.08)
S = CMTConfig(32, (64, 128, 256, 512), (3, 3, 16, 3), 4, dropout=0.1, drop_path=0.1)
B = CMTConfig(38, (76, 152, 304, 608), (4, 4, 20, 4), 4, dropout=0.3, drop_path=0.25)


def _spec(config: CMTConfig, side: int) -> ModelSpec:
    def build(ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
        return CMT(config, ops, resolution, num_classes)

    return ModelSpec(build, (side, side), Preprocessing(crop_pct=224 / 256))


MODELS: dict[str, ModelSpec] = {
    "cmt_ti": _spec(TI, 160),
    "cmt_xs": _spec(XS, 192),
    "cmt_s": _spec(S, 224),
    "cmt_b": _spec(B, 256),
    "cmt_ti_224": _spec(TI, 224),
    "cmt_xs_224": _spec(XS, 224),
    "cmt_b_224": _spec(B, 224),
}
