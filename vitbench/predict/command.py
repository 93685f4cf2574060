"""`vitbench predict`: images a second on cards that need not be here. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path

from vitbench import cards, columns, drawing, selection
from vitbench.columns import Column, Kind, Shown
from vitbench.console import console
from vitbench.errors import InputError, nearest
from vitbench.predict import anchors, calibration, explain, picture, plan
from vitbench.predict.calibration import Anchored
from vitbench.predict.options import PredictOptions
from vitbench.predict.plan import Row
from vitbench.predict.setting import DTYPES, IMPLS

FORMATS = ("table", "csv", "json")
COLUMNS = tuple(field.name for field in fields(Row))


def run(given: PredictOptions) -> int:
    """Prints every model on every card; 1 where one has no prediction.

    Raises: InputError on options that cannot be used.
    """
    if given.gpu.strip() == "list":
        columns.show(cards.speed_columns(), _asked(given))
        return 0
    if given.format not in FORMATS:
        raise InputError(f"--format {given.format!r} is unknown: {nearest(given.format, FORMATS)}")
    if given.out is not None and given.out.exists() and not given.out.is_dir():
        raise InputError(f"--out {given.out} is a file: name a folder")
    if given.explain and (given.format != "table" or given.out is not None):
        raise InputError("--explain prints a table: leave out --format and --out")
    shown = explain.table((), 1.0) if given.explain else table(())
    known = list(dict.fromkeys([*plan.SORTS, *(one.name for one in shown)]))
    if given.sort.removeprefix("-") not in known:
        raise InputError(f"--sort {given.sort!r} is unknown: {nearest(given.sort, known)}")
    columns.check(shown, _asked(given))
    plan.check(given)
    factors = _factors(given)
    print(calibration.statement(selection.split(given.impl, "impl", IMPLS)), file=sys.stderr)
    if given.explain:
        return _explain(given, factors)
    rows = plan.rows(given, factors, _told)
    if given.format == "table":
        columns.show(table(rows), _asked(given))
        _print_notes(rows)
    else:
        sys.stdout.write(as_csv(rows) if given.format == "csv" else as_json(rows))
    if given.out is not None:
        print("wrote " + ", ".join(map(str, write(rows, given.out))), file=sys.stderr)
    return int(any(row.img_per_s is None for row in rows))


def _asked(given: PredictOptions) -> Shown:
    """Of the table; what the plan sorts by is sorted there, in CSV and JSON too."""
    return replace(given, sort="") if given.sort in plan.SORTS else given


def _factors(given: PredictOptions) -> dict[str, Anchored]:
    if given.anchors is None:
        return {}
    found = plan.cards_of(given)
    if len(found) > 1:
        raise InputError("--anchors are of one card: name one in --gpu")
    (card,) = found
    dtype = selection.split(given.dtype, "dtype", DTYPES)[0]
    layout = selection.split(given.layout, "layout", selection.LAYOUTS)[0]
    impls = selection.split(given.impl, "impl", IMPLS)
    if len(impls) > 1:
        raise InputError("--anchors are of one way to run: name one in --impl")
    measured = anchors.read(given.anchors, card, dtype, layout, impls[0])
    moved = anchors.factors(card, measured)
    print(anchors.told(card, measured, moved), file=sys.stderr)
    return {card.name: moved}


def _told(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} models", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _explain(given: PredictOptions, factors: plan.Factors) -> int:
    settings = plan.settings(
        PredictOptions(
            model=given.explain,
            resolution=given.resolution,
            dtype=given.dtype,
            layout=given.layout,
            impl=given.impl,
            fast_norm=given.fast_norm,
            reparam=given.reparam,
        )
    )
    for sized, setting in settings:
        if sized.reason:
            raise InputError(sized.reason)
        for card in plan.cards_of(given):
            for batch in selection.split_batches(given.batch):
                told = explain.explained(setting, card, batch, factors.get(card.name))
                print(told.head)
                columns.show(told.kernels, _asked(given))
                print("\n".join(told.others))
    return 0


def as_csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _plain(getattr(row, name)) for name in COLUMNS})
    return out.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def _plain(value: object) -> object:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def table(rows: Sequence[Row]) -> list[Column]:
    """A row for each model and card; what is the same for all is left out."""
    keys = ("model", "gpu", "resolution", "batch", "dtype", "layout", "impl")
    kinds: dict[str, Kind] = {"model": "key", "resolution": "number", "batch": "number"}
    shares = ("convolutions", "products", "attention", "memory_bound", "rare")
    return [
        *(Column("px" if n == "resolution" else n, [getattr(row, n) for row in rows], kinds.get(n, "word"),
                 quiet=n not in ("model", "gpu")) for n in keys),
        Column("img/s", [row.img_per_s for row in rows], show=_whole),
        Column("80 % within", ["" if row.low is None else f"{row.low:,.0f}-{row.high:,.0f}" for row in rows]),
        Column("ms", [row.ms for row in rows], show=_tenth),
        Column("GiB", [row.memory_gib for row in rows], show=_tenth),
        Column("fits", ["" if row.img_per_s is None else "yes" if row.fits else "no" for row in rows]),
        Column("top-1", [row.top1 for row in rows], show=_tenth),
        *(Column(_SHARES.get(n, n), [getattr(row, n) for row in rows], show=_percent) for n in shares),
    ]  # fmt: skip


_SHARES = {"convolutions": "conv", "products": "product", "memory_bound": "memory"}


def _whole(value: float | None) -> str:
    return "no prediction" if value is None else f"{value:,.0f}"


def _tenth(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _print_notes(rows: Sequence[Row]) -> None:
    out = console()
    for text in dict.fromkeys(text for row in rows for text in (row.note, row.reason) if text):
        of = list(dict.fromkeys(f"{row.model} on {row.gpu}" for row in rows if text in (row.note, row.reason)))
        more = f" and {len(of) - 3} more" if len(of) > 3 else ""
        out.print(f"{', '.join(of[:3])}{more}: {text}", soft_wrap=True)


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """The rows as CSV; where there are packages to draw a picture of top-1 against images a second, and a page."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "predictions.csv"
    text = as_csv(rows)
    path.write_text(text, encoding="utf-8")
    if drawing.plotting_missing():
        print(f"no picture drawn: {drawing.INSTALL}", file=sys.stderr)
        return [path]
    chart = picture.chart(rows)
    if chart is None:
        return [path]
    page = folder / "predictions.html"
    notes = calibration.statement(dict.fromkeys(row.impl for row in rows)).split("\n")
    specification = drawing.specification(chart)
    with ThreadPoolExecutor(1) as beside:  # a picture is made smaller while the page is written
        files = beside.submit(drawing.save_specification, specification, folder / "predictions")
        panels = picture.panels(rows, "container")
        drawing.page(panels, page, "Top-1 against predicted images a second", text, notes)
    return [path, *files.result(), page]


__all__ = ["COLUMNS", "FORMATS", "as_csv", "as_json", "run", "table", "write"]
