"""Which models there are and what is published about them, as data: reading it imports no torch.

Parameters and MACs are counted from the official code; top-1, COCO AP and training data are the
publishers' own. Tests hold every row against the model that is built.
"""

from __future__ import annotations

import csv
import fnmatch
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vitbench.errors import InputError, nearest

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
    if len(sides) not in (1, 2) or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
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


def entry(name: str) -> CatalogEntry:
    """What is known of a model that can be built: of the catalog, or of another library (`timm:convnext_tiny`)."""
    if ":" not in name:
        return catalog()[name]
    from vitbench.models import foreign  # imports torch and the library

    return foreign.entry(name)


def match(patterns: str, only_published: bool = False) -> list[str]:
    """The models named by comma-separated names or wildcards, in catalog order; "all" is every model.

    `timm:`, `torchvision:` and `transformers:` before a name or wildcard mean that library's models, which come last.

    Args:
        only_published: also those of which nothing but figures is known.

    Raises: InputError naming the nearest models when a pattern matches none, or a library is missing.
    """
    names = list(published() if only_published else catalog())
    chosen: set[str] = set()
    foreign: list[str] = []
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    if not wanted:
        raise InputError("no model given: name one, or several with commas or wildcards such as 'cmt_*'")
    for pattern in wanted:
        if ":" in pattern:
            foreign += _match_foreign(pattern, only_published)
            continue
        matched = names if pattern == "all" else fnmatch.filter(names, pattern)
        if not matched and pattern in published():
            raise InputError(
                f"{pattern} cannot be built: {published()[pattern].source}; nearest: {nearest(pattern, names)}"
            )
        if not matched:
            raise InputError(f"unknown model {pattern!r}: {nearest(pattern, names)}")
        chosen.update(matched)
    return [*(name for name in names if name in chosen), *dict.fromkeys(foreign)]


def _match_foreign(pattern: str, only_published: bool) -> list[str]:
    if only_published:
        raise InputError(f"{pattern}: the list has vitbench's own models; `vitbench bench --dry-run` counts others")
    from vitbench.models import foreign

    return foreign.match(pattern)


def check_resolution(model: str, resolution: Resolution) -> None:
    """Raises: InputError with the nearest sizes that fit when the model cannot take this one."""
    multiple = entry(model).resolution_multiple
    if all(side % multiple == 0 for side in resolution):
        return
    fits = [
        format_resolution((max(1, h // multiple) * multiple, max(1, w // multiple) * multiple))
        for h, w in (resolution, (resolution[0] + multiple, resolution[1] + multiple))
    ]
    raise InputError(
        f"{model} takes multiples of {multiple} px, not {format_resolution(resolution)}; "
        f"nearest: {', '.join(dict.fromkeys(fits))}"
    )
