"""Which models there are and what is published about them, as data: reading it imports no torch.

Parameters and MACs are counted from the official code; top-1, COCO AP and training data are the
publishers' own. Tests hold every row against the model that is built.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vitbench.errors import InputError

Resolution = tuple[int, int]


@dataclass(frozen=True)
class Published:
    """What is published of one model: a row of catalog.csv. What is not is None or "".

    `params_m` in millions, `gmacs` in 10^9 multiply-accumulates at batch 1.
    """

    model: str
    family: str
    params_m: float | None
    gmacs: float | None
    resolution: Resolution | None
    top1: float | None
    coco_ap: float | None
    training_data: str
    source: str


@dataclass(frozen=True)
class CatalogEntry(Published):
    """A model that can be built, at resolutions whose sides are multiples of `resolution_multiple`."""

    resolution: Resolution
    resolution_multiple: int


def parse_resolution(text: str) -> Resolution:
    """`224` or `800x1066` (height x width) as (height, width) in pixels.

    Raises: InputError when it is neither, or a side is not positive.
    """
    sides = text.lower().split("x")
    if len(sides) not in (1, 2) or not all(re.fullmatch("0*[1-9][0-9]{0,8}", side) for side in sides):
        raise InputError(f"resolution {text!r} is neither a size such as 224 nor HEIGHTxWIDTH such as 800x1066")
    return int(sides[0]), int(sides[-1])


def format_resolution(resolution: Resolution) -> str:
    height, width = resolution
    return str(height) if height == width else f"{height}x{width}"


def _number(text: str) -> float | None:
    return float(text) if text else None


@cache
def published() -> dict[str, Published]:
    """Every row of catalog.csv by name, in its order: those of which too little is known to build them are no
    CatalogEntry, and have no `resolution_multiple` there."""
    with (Path(__file__).parent / "catalog.csv").open(newline="", encoding="utf-8") as file:
        return {row["model"]: _entry(row) for row in csv.DictReader(file)}


def _entry(row: dict[str, str]) -> Published:
    known = Published(
        model=row["model"],
        family=row["family"],
        params_m=_number(row["params_m"]),
        gmacs=_number(row["gmacs"]),
        resolution=parse_resolution(row["resolution"]) if row["resolution"] else None,
        top1=_number(row["imagenet_top1"]),
        coco_ap=_number(row["coco_ap"]),
        training_data=row["top1_training_data"],
        source=row["source"],
    )
    if not row["resolution_multiple"]:
        return known
    return CatalogEntry(**vars(known), resolution_multiple=int(row["resolution_multiple"]))


@cache
def catalog() -> dict[str, CatalogEntry]:
    """Every model that can be built by name, in the order of catalog.csv."""
    return {name: entry for name, entry in published().items() if isinstance(entry, CatalogEntry)}
