"""Resizing of learned tables that hold one vector per cell of a grid.

Bicubic, computed in fp32 or better; with antialiasing as timm resizes position tables, or without as YOLOS
does. The ViT authors' own code zooms linearly, which differs slightly.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


def resample_grid(table: Tensor, old: Grid, new: Grid, mode: str = "bicubic", antialias: bool = True) -> Tensor:
    """Resizes the grid axis of a table from `old` to `new` rows and columns.

    Args:
        table: [..., h * w, C], cells in row-major order, any floating dtype; any number of leading axes.
        old: (h, w) of the table; new: (h', w') wanted. Other axes are resized by transposing them into place.
        mode: "bicubic" or "bilinear".
        antialias: whether shrinking averages over the cells it drops.

    Returns: [..., h' * w', C] in table.dtype; the table itself when the grids are equal.

    Raises: ValueError when the table does not have h * w cells.
    """
    cells, channels = table.shape[-2:]
    if cells != old[0] * old[1]:
        raise ValueError(f"table of shape {list(table.shape)} has {cells} cells, not the {old[0]} x {old[1]} given")
    if old == new:
        return table
    image = table.reshape(-1, *old, channels).permute(0, 3, 1, 2).to(torch.promote_types(table.dtype, torch.float32))
    image = F.interpolate(image, size=new, mode=mode, antialias=antialias)
    return image.permute(0, 2, 3, 1).reshape(*table.shape[:-2], new[0] * new[1], channels).to(table.dtype)


def square_grid(cells: int) -> Grid:
    """(n, n) with n * n == cells; raises ValueError when there is no such n."""
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(f"a table of {cells} cells is not square, so its height and width are unknown")
    return side, side


def source_grid(cells: int, *known: Grid) -> Grid:
    """The first of the known grids that has so many cells, else a square: a table does not say its own.

    Raises: ValueError when none has and they make no square.
    """
    return next((grid for grid in known if math.prod(grid) == cells), None) or square_grid(cells)


def resample_positions(
    table: Tensor, prefix_tokens: int, published: Grid, own: Grid, given: Grid | None = None
) -> Tensor:
    """A position table of a transformer resampled to the grid `own`; prefix tokens keep their positions.

    Its grid is taken as timm takes it: the published one where the number of cells is that one's, else
    `own` where it has as many, else a square.

    Args:
        table: [1, prefix_tokens + h * w, C].
        given: the table's grid where it is known.

    Returns: [1, prefix_tokens + own[0] * own[1], C].

    Raises: ValueError when the cells make none of these grids.
    """
    cells = table.shape[1] - prefix_tokens
    prefix, positions = table.split([prefix_tokens, cells], dim=1)
    return torch.cat([prefix, resample_grid(positions, given or source_grid(cells, published, own), own)], dim=1)


__all__ = ["Grid", "resample_grid", "resample_positions", "source_grid", "square_grid"]
