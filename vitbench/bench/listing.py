"""`vitbench list`: the catalog as table, CSV or JSON. Imports no torch."""

from __future__ import annotations

import csv
import json
import sys

from vitbench import columns
from vitbench.bench.options import ListOptions
from vitbench.catalog import Published, format_resolution, published
from vitbench.columns import Column
from vitbench.errors import InputError, nearest
from vitbench.selection import match

FORMATS = ("table", "csv", "json")


def _columns(entries: list[Published]) -> list[Column]:
    sizes = [None if entry.resolution is None else format_resolution(entry.resolution) for entry in entries]
    return [
        Column("model", [entry.model for entry in entries], "key"),
        Column("family", [entry.family for entry in entries], "text"),
        Column("params_m", [entry.params_m for entry in entries]),
        Column("gmacs", [entry.gmacs for entry in entries]),
        Column("resolution", sizes),
        Column("top1", [entry.top1 for entry in entries]),
        Column("coco_ap", [entry.coco_ap for entry in entries]),
        Column("training_data", [entry.training_data for entry in entries], "text"),
        Column("source", [entry.source for entry in entries], "text"),
    ]


def print_models(given: ListOptions) -> None:
    """Prints the models that match; params_m in millions, gmacs in 10^9 multiply-accumulates at batch 1.

    Raises: InputError on a pattern that matches nothing, an unknown format or column, or a filter that is none.
    """
    if given.format not in FORMATS:
        raise InputError(f"format {given.format!r} is unknown: {nearest(given.format, FORMATS)}")
    entries = published()
    found = _columns([entries[name] for name in match(given.pattern, only_published=True)])
    if given.format == "table":
        columns.show(found, given)
        return
    chosen = columns.choose(found, given.columns, given.sort, given.filter)
    names = [column.name for column in chosen]
    rows = list(zip(*(column.values for column in chosen), strict=True))
    if given.format == "json":
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
    else:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([names, *rows])
