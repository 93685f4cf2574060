"""ImageNet top-1 of models, as published, and by whom. Imports no torch."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vitbench.catalog import Resolution, catalog

#: model, with the tag of its weights; img_size; top1 in percent. timm's results/results-imagenet.csv, Apache-2.0.
TIMM = Path(__file__).with_name("top1.csv")


class Top1(NamedTuple):
    percent: float
    source: str


@cache
def _of_timm() -> dict[tuple[str, int], Top1]:
    """By name without tag, and size: the best of the published weights."""
    best: dict[tuple[str, int], Top1] = {}
    with TIMM.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found = Top1(float(row["top1"]), f"timm results-imagenet.csv: {row['model']}")
            for name in (row["model"], row["model"].partition(".")[0]):
                key = name, int(row["img_size"])
                best[key] = max(best.get(key, found), found)
    return best


def top1(model: str, resolution: Resolution) -> Top1 | None:
    """Of a model at a size; None where nothing is published of it there. Of several weights the best."""
    if model.startswith("timm:"):
        square = resolution[0] == resolution[1]
        return _of_timm().get((model.removeprefix("timm:"), resolution[0])) if square else None
    known = catalog().get(model)
    if known is None or known.top1 is None or known.resolution != resolution:
        return None
    return Top1(known.top1, known.source)


__all__ = ["Top1", "top1"]
