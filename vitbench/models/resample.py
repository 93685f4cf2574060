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


def resample_grid(table: Tensor, old: Grid, new: Grid, antialias: bool = True) -> Tensor:
    """Resizes the grid axis of a table from `old` to `new` rows and columns.

    Args:
        table: [..., h * w, C], cells in row-major order, any floating dtype; any number of leading axes.
        old: (h, w) of the table; new: (h', w') wanted. Other axes are resized by transposing them into place.

    Returns: [..., h' * w', C] in table.dtype; the table itself when the grids are equal.

    Raises: ValueError when the table does not have h * w cells.
    """
    cells, channels = table.shape[-2:]
    if cells != old[0] * old[1]:
        raise ValueError(f"table of shape {list(table.shape)} has {cells} cells, not the {old[0]} x {old[1]} given")
    if old == new:
        return table
    image = table.reshape(-1, *old, channels).permute(0, 3, 1, 2).to(torch.promote_types(table.dtype, torch.float32))
    image = F.interpolate(image, size=new, mode="bicubic", antialias=antialias)
    return image.permute(0, 2, 3, 1).reshape(*table.shape[:-2], new[0] * new[1], channels).to(table.dtype)


def square_grid(cells: int) -> Grid:
    """(n, n) with n * n == cells; raises ValueError when there is no such n."""
    side = math.isqrt(cells)
    if side * side != cells:
        raise ValueError(f"a table of {cells} cells is not square, so its height and width are unknown")
    return side, side


__all__ = ["Grid", "resample_grid", "square_grid"]
