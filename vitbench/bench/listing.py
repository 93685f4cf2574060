"""`vitbench list`: the catalog as table, CSV or JSON. Imports no torch."""

from __future__ import annotations

import csv
import json
import sys

from vitbench.catalog import format_resolution, published
from vitbench.errors import InputError, nearest
from vitbench.selection import match

FORMATS = ("table", "csv", "json")


def _records(pattern: str) -> list[dict[str, object]]:
    entries = published()
    return [
        {
            "model": entry.model,
            "family": entry.family,
            "params_m": entry.params_m,
            "gmacs": entry.gmacs,
            "resolution": None if entry.resolution is None else format_resolution(entry.resolution),
            "top1": entry.top1,
            "coco_ap": entry.coco_ap,
            "training_data": entry.training_data,
            "source": entry.source,
        }
        for entry in (entries[name] for name in match(pattern, only_published=True))
    ]


def print_models(pattern: str, format: str) -> None:
    """Prints the models that match; params_m in millions, gmacs in 10^9 multiply-accumulates at batch 1.

    Raises: InputError on a pattern that matches nothing or an unknown format.
    """
    if format not in FORMATS:
        raise InputError(f"format {format!r} is unknown: {nearest(format, FORMATS)}")
    records = _records(pattern)
    if format == "json":
        print(json.dumps(records, indent=1))
    elif format == "csv":
        writer = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    else:
        _print_table(records)


def _print_table(records: list[dict[str, object]]) -> None:
    from rich.table import Table

    from vitbench.console import console

    numeric = {"params_m", "gmacs", "resolution", "top1", "coco_ap"}
    shown = [name for name in records[0] if any(record[name] not in (None, "") for record in records)]
    table = Table(box=None, pad_edge=False)
    for name in shown:
        if name in ("training_data", "source"):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        else:
            width = max(len(name), *(len(str(record[name])) for record in records if record[name] is not None))
            table.add_column(name, justify="right" if name in numeric else "left", min_width=width, no_wrap=True)
    for record in records:
        table.add_row(*("" if record[name] is None else str(record[name]) for name in shown))
    console().print(table)
