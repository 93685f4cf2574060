"""YOLOS (arXiv:2106.00666): a plain vision transformer with 100 detection tokens after its patches.

Parameter names and shapes are the official repository's. Position tables have a fixed size, whatever the image's, and
are resampled (bicubic, without antialiasing) in every forward pass whose grid of patches differs. The official code
compares the number of patches instead, so an image whose grid has as many in another shape, such as a portrait
of the table's size, gets positions of the wrong cells; here it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitbench.catalog import Resolution, format_resolution
from vitbench.models.detection import MLP, Detections
from vitbench.models.resample import Grid, resample_grid
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.models.vit import Block, PatchEmbed, Size, ViTConfig
from vitbench.ops.bundle import Ops

_PATCH = 16


def _grid(resolution: Resolution) -> Grid:
    """Rows and columns of whole patches; what is left over is not seen."""
    return resolution[0] // _PATCH, resolution[1] // _PATCH


@dataclass(frozen=True)
class YOLOSConfig:
    """One YOLOS: the image its position tables are made for, in pixels, and its evaluation's, published.

    middle: whether every block but the last adds a position table of its own to its output.
    """

    size: Size
    table: Resolution
    middle: bool
    resolution: Resolution
    tokens: int = 100


class Backbone(nn.Module):
    """Images [B, 3, H, W] to [B, tokens, width]: of class token, patches and detection tokens, the last come out."""

    def __init__(self, ops: Ops, config: YOLOSConfig) -> None:
        super().__init__()
        size = config.size
        self.tokens = config.tokens
        self.grid = _grid(config.table)
        rows = 1 + self.grid[0] * self.grid[1] + config.tokens
        self.patch_embed = PatchEmbed(ViTConfig(size, _PATCH, resolution=max(config.table)))
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.det_token = nn.Parameter(torch.empty(1, config.tokens, size.width))
        self.pos_embed = nn.Parameter(torch.empty(1, rows, size.width))
        self.mid_pos_embed = nn.Parameter(torch.empty(size.depth - 1, 1, rows, size.width)) if config.middle else None
        self.blocks = nn.ModuleList(Block(ops, size) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    def positions(self, table: Tensor, grid: Grid) -> Tensor:
        """[..., rows, width] of the tables' own grid to that of `grid`; class and detection tokens keep theirs."""
        first, patches, last = table.split([1, table.shape[-2] - 1 - self.tokens, self.tokens], dim=-2)
        return torch.cat([first, resample_grid(patches, self.grid, grid, antialias=False), last], dim=-2)

    def forward(self, images: Tensor) -> Tensor:
        grid = _grid((int(images.shape[2]), int(images.shape[3])))
        first, last = (token.expand(len(images), -1, -1) for token in (self.cls_token, self.det_token))
        x = torch.cat([first, self.patch_embed(images), last], dim=1) + self.positions(self.pos_embed, grid)
        middle = None if self.mid_pos_embed is None else self.positions(self.mid_pos_embed, grid)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if middle is not None and index < len(middle):
                x = x + middle[index]
        return self.norm(x[:, -self.tokens :])


class YOLOS(nn.Module):
    """Images of any size from 16 pixels to `Detections` without aux_outputs. No dropout and no stochastic depth."""

    def __init__(self, ops: Ops, config: YOLOSConfig, num_classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(ops, config)
        self.class_embed = MLP(config.size.width, num_classes + 1)
        self.bbox_embed = MLP(config.size.width, 4)
        self.backbone.apply(_initialise)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Detections:
        """images: [B, 3, H, W]; mask: of their padding as `pad_batch` makes it, ignored as in the official code."""
        x = self.backbone(images)
        return {"pred_logits": self.class_embed(x), "pred_boxes": self.bbox_embed(x).sigmoid()}


def _initialise(module: nn.Module) -> None:
    """The authors' start where nothing is pre-trained; they truncate at 100 standard deviations, so never."""
    if isinstance(module, Backbone):
        for table in (module.cls_token, module.det_token, module.pos_embed, module.mid_pos_embed):
            if table is not None:
                nn.init.normal_(table, std=0.02)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


CONFIGS: dict[str, YOLOSConfig] = {
    "yolos_ti": YOLOSConfig(Size(192, 12, 3), (800, 1333), middle=False, resolution=(512, 682)),
    "yolos_s": YOLOSConfig(Size(384, 12, 6), (512, 864), middle=True, resolution=(800, 1066)),
    "yolos_s_dwr": YOLOSConfig(Size(330, 14, 6), (512, 864), middle=True, resolution=(784, 1045)),
    "yolos_b": YOLOSConfig(Size(768, 12, 12), (800, 1344), middle=True, resolution=(800, 1066)),
}


def _build(config: YOLOSConfig, ops: Ops, resolution: Resolution, num_classes: int) -> nn.Module:
    if min(resolution) < _PATCH:
        raise ValueError(f"resolution {format_resolution(resolution)} has a side shorter than a patch, {_PATCH} px")
    return YOLOS(ops, config, num_classes)


MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(
        build=partial(_build, config),
        resolution=config.resolution,
        preprocessing=Preprocessing(crop_pct=1.0, interpolation="bilinear"),
        num_classes=91,
    )
    for name, config in CONFIGS.items()
}

__all__ = ["CONFIGS", "MODELS", "YOLOS", "YOLOSConfig"]
