"""`vitbench fuse-report`: what `vitkernels.fuse` does to each model of a library. Imports no torch."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TextIO

from vitbench import cards, columns
from vitbench.catalog import format_resolution
from vitbench.columns import Column
from vitbench.console import console
from vitbench.errors import InputError, nearest
from vitbench.fuse_report.ask import ask_all
from vitbench.fuse_report.options import FuseReportOptions
from vitbench.fuse_report.setting import Answer, Setting
from vitbench.predict import plan
from vitbench.predict.forecast import kernel_seconds

FORMATS = ("table", "csv", "json")


@dataclass(frozen=True)
class Row:
    """A model, as the CSV has it; empty where `reason` says why.

    served, left: modules that run on kernels, and those that a kernel might have served; *_modules: their classes, with
    the reasons of what is left. kernel_macs: the share of the model's multiply-accumulates that operators of vitkernels
    compute; linear layers beside attention are none of them, and depthwise convolutions have few, but wait for memory.
    time: the share of the predicted time of the model without kernels, on a card under bf16 autocast, that the served
    modules take, their linear layers included.
    """

    model: str
    resolution: str
    served: int | None = None
    left: int | None = None
    kernel_macs: float | None = None
    time: float | None = None
    gmacs: float | None = None
    served_modules: str = ""
    left_modules: str = ""
    reason: str = ""


COLUMNS = tuple(field.name for field in fields(Row))


def run(given: FuseReportOptions) -> int:
    """Prints a row for each model; 1 where one cannot be built or counted.

    Raises: InputError on options that cannot be used.
    """
    if given.format not in FORMATS:
        raise InputError(f"--format {given.format!r} is unknown: {nearest(given.format, FORMATS)}")
    if given.out is not None and given.out.exists() and not given.out.is_dir():
        raise InputError(f"--out {given.out} is a file: name a folder")
    columns.check(_columns([]), given)
    cards.find(given.gpu)
    if given.batch < 1:
        raise InputError(f"--batch {given.batch} should be 1 or more")
    for pattern in given.model.split(","):
        if ":" not in pattern:
            raise InputError(
                f"fuse is for models of other libraries, such as 'timm:{pattern.strip() or 'swin*'}'; vitbench's own "
                "run on kernels with `bench --impl fused`"
            )
    found = rows(given)
    chosen = columns.choose(_columns(found), given.columns, given.sort, given.filter)
    if given.format == "table":
        columns.show(_columns(found), given)
        console().print(_summary(found, given), soft_wrap=True)
    elif given.format == "json":
        names = [column.name for column in chosen]
        values = zip(*(column.values for column in chosen), strict=True)
        print(json.dumps([dict(zip(names, row, strict=True)) for row in values], indent=1))
    else:
        _write(chosen, sys.stdout)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        path = given.out / "fuse-report.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            _write(_columns(found), file)
        print(f"wrote {path}", file=sys.stderr)
    return int(any(row.reason for row in found))


def rows(given: FuseReportOptions) -> list[Row]:
    """A row for each model and size, in the library's order.

    Raises: InputError.
    """
    sized = plan.models(given.model, given.resolution)
    settings = [Setting(one.model, one.resolution) for one in sized if not one.reason]
    answers = dict(zip(settings, ask_all(settings, _told), strict=True))
    return [
        Row(one.model, one.asked, reason=one.reason) if one.reason
        else _row(Setting(one.model, one.resolution), answers[Setting(one.model, one.resolution)], given)
        for one in sized
    ]  # fmt: skip


def _row(setting: Setting, answer: Answer, given: FuseReportOptions) -> Row:
    size = format_resolution(setting.resolution)
    if answer.reason:
        return Row(setting.model, size, reason=answer.reason)
    share = answer.kernel_gmacs / answer.gmacs if answer.gmacs else 0.0
    counted = {name: value for name, value in asdict(answer).items() if name in COLUMNS}
    return Row(setting.model, size, kernel_macs=share, time=_time(answer, given), **counted)


def _time(answer: Answer, given: FuseReportOptions) -> float | None:
    """The served modules' share, where the model could be traced."""
    if not answer.kernels:
        return None
    served, whole = (
        sum(kernel_seconds(one, cards.find(given.gpu), given.batch)) for one in (answer.within, answer.kernels)
    )
    return served / whole


def _told(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} models", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _columns(found: Sequence[Row]) -> list[Column]:
    return [
        Column("model", [row.model for row in found], "key"),
        Column("resolution", [row.resolution for row in found]),
        Column("served", [row.served for row in found]),
        Column("left", [row.left for row in found]),
        Column("kernel_macs", [row.kernel_macs for row in found], show=lambda v: "" if v is None else f"{v:.1%}"),
        Column("time", [row.time for row in found], show=lambda v: "" if v is None else f"{v:.1%}"),
        Column("gmacs", [row.gmacs for row in found], show=lambda v: "" if v is None else f"{v:.3g}"),
        Column("served_modules", [row.served_modules for row in found], "text"),
        Column("left_modules", [row.left_modules for row in found], "text"),
        Column("reason", [row.reason for row in found], "note"),
    ]


def _write(chosen: Sequence[Column], file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([column.name for column in chosen])
    for row in zip(*(column.values for column in chosen), strict=True):
        writer.writerow(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in row])


def _summary(found: Sequence[Row], given: FuseReportOptions) -> str:
    served, failed = sum(bool(row.served) for row in found), sum(bool(row.reason) for row in found)
    untouched = sum(row.served == row.left == 0 for row in found)
    text = (
        f"of {len(found)} models fuse serves {served}, {untouched} have nothing that a kernel might serve; kernel_macs "
        "is the share of multiply-accumulates in vitkernels' operators, of which depthwise convolutions have few; time "
        f"is the share of served modules in the predicted time without kernels on the {cards.find(given.gpu).name}"
    )
    return f"{text}; {failed} failed" if failed else text


__all__ = ["COLUMNS", "Row", "rows", "run"]
