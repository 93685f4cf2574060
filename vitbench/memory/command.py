"""`vitbench memory`: what a step takes on cards that need not be here. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from vitbench import cards, columns, drawing, selection
from vitbench.columns import Column, Kind
from vitbench.console import console
from vitbench.errors import InputError, nearest
from vitbench.memory import curves, plan
from vitbench.memory.options import MemoryOptions
from vitbench.memory.plan import Row
from vitbench.memory.reserve import SOURCE
from vitbench.memory.setting import batch_words

FORMATS = ("table", "csv", "json")
COLUMNS = tuple(field.name for field in fields(Row))


def run(given: MemoryOptions) -> int:
    """Prints every case on every card; 1 where one has no prediction.

    Raises: InputError on options that cannot be used.
    """
    if given.gpu.strip() == "list":
        columns.show(cards.memory_columns(), given)
        return 0
    if given.format not in FORMATS:
        raise InputError(f"--format {given.format!r} is unknown: {nearest(given.format, FORMATS)}")
    if given.out is not None and given.out.exists() and not given.out.is_dir():
        raise InputError(f"--out {given.out} is a file: name a folder")
    columns.check(table([], [one.name for one in plan.targets(given.gpu, given.gib)]), given)
    rows = predicted(given)
    if given.format == "table":
        columns.show(table(rows), given)
        print_notes(rows)
    else:
        sys.stdout.write(as_csv(rows) if given.format == "csv" else as_json(rows))
    if given.out is not None:
        files = write(rows, given.out / "memory", "Peak memory, predicted")
        print("wrote " + ", ".join(map(str, files)), file=sys.stderr)
    return int(any(row.peak_mib is None for row in rows))


def predicted(given: MemoryOptions) -> list[Row]:
    """The rows of the options, case by case and for each case card by card.

    Raises: InputError.
    """
    found = plan.targets(given.gpu, given.gib)
    batches = selection.split_batches(given.batch)
    cells = [cell for group in zip(*(plan.settings(given, target) for target in found), strict=True) for cell in group]

    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} of {total} settings", end="\n" if done == total else "", file=sys.stderr, flush=True)

    rows = plan.rows(cells, batches, told)
    by_case = [rows[start : start + len(batches)] for start in range(0, len(rows), len(batches))]
    return [
        row
        for start in range(0, len(by_case), len(found))
        for same_batch in zip(*by_case[start : start + len(found)], strict=True)
        for row in same_batch
    ]


def as_csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _plain(value) for name, value in asdict(row).items()})
    return out.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def _plain(value: object) -> object:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else value


_SHOWN = ("peak", "reserve", "weights", "gradients", "optimizer", "activations", "workspace")


def table(rows: Sequence[Row], cards_named: Sequence[str] = ()) -> list[Column]:
    """A row for each case; what is the same for all is left out, and each card, found or named, has two columns."""
    gpus = list(dict.fromkeys([*(row.gpu for row in rows), *cards_named]))
    keys = ("model", "resolution", "batch", "mode", "dtype", "impl", "optimizer")
    kinds: dict[str, Kind] = {"model": "key", "resolution": "number", "batch": "number"}
    first = rows[:: len(gpus)]
    found = [
        Column(
            "px" if name == "resolution" else name,
            [getattr(row, name) for row in first],
            kinds.get(name, "word"),
            quiet=name not in keys[:4],
        )
        for name in keys
    ]
    named = {"optimizer": "optimizer MiB"}
    peak, *parts = (
        Column(named.get(name, name), [getattr(row, f"{name}_mib") for row in first], show=_whole) for name in _SHOWN
    )
    found.append(peak)
    for number, gpu in enumerate(gpus):
        judged = [_judged(row) for row in rows[number :: len(gpus)]]
        verdicts, largest = [one for one, _ in judged], [other for _, other in judged]
        found += [Column(gpu, verdicts, "word"), Column("largest" if len(gpus) == 1 else f"{gpu} max", largest)]
    return [*found, *parts]


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _judged(row: Row) -> tuple[str, str]:
    if row.peak_mib is None:
        return "no prediction", ""
    return row.verdict, batch_words(row.largest_batch or 0)


def print_notes(rows: Sequence[Row]) -> None:
    """Units, where the reserve is from, and every reason once."""
    out = console()
    out.print(
        "MiB alive at the peak, as torch.cuda.max_memory_allocated counts; largest, max: the largest batch that runs\n"
        f"reserve: {SOURCE}\n"
        f"borderline: within {plan.MARGIN:.0%} of what the card has",
        soft_wrap=True,
    )
    for reason in dict.fromkeys(row.reason for row in rows if row.reason):
        of = [row for row in rows if row.reason == reason]
        models = list(dict.fromkeys(f"{row.model} {row.resolution}" for row in of))
        more = f" and {len(models) - 3} more" if len(models) > 3 else ""
        out.print(f"{', '.join(models[:3])}{more}: {reason}", soft_wrap=True)


def write(rows: Sequence[Row], stem: Path, title: str, measured: Mapping[Row, float] | None = None) -> list[Path]:
    """The rows as CSV; curves beside them as PNG, SVG and a page, where there are some and the packages to draw."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_suffix(".csv")
    path.write_text(as_csv(rows), encoding="utf-8")
    if drawing.plotting_missing():
        print(f"no picture drawn: {drawing.INSTALL}", file=sys.stderr)
        return [path]
    chart = curves.chart(rows, measured)
    if chart is None:
        return [path]
    page = stem.with_suffix(".html")
    panels = curves.by_mode(rows, measured, "container").values()
    drawing.page([panel for of_mode in panels for panel in of_mode], page, title, as_csv(rows))
    return [path, *drawing.save(chart, stem), page]


__all__ = ["COLUMNS", "FORMATS", "as_csv", "as_json", "predicted", "print_notes", "run", "table", "write"]
