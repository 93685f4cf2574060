"""A few measured rows of a card, and the two factors by which they correct what is predicted for it. No torch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitbench import selection
from vitbench.cards import Card, of_device
from vitbench.catalog import parse_resolution
from vitbench.errors import InputError
from vitbench.predict import ask, calibration
from vitbench.predict.calibration import ADVISED, Anchored
from vitbench.predict.cost import Device, Parameters, seconds
from vitbench.predict.fit import soft
from vitbench.predict.setting import DTYPES, Setting
from vitbench.predict.table import Column, Table

#: How far the factors plausibly are from 1, as logarithms, and what a model's own error is.
_PLAUSIBLE, _MODEL = 0.3, 0.06
_STEPS, _SMALL = 12, 1e-4


class Anchor(NamedTuple):
    """A measured model: images a second at a batch."""

    setting: Setting
    batch: int
    img_per_s: float


def read(path: Path, card: Card, dtype: str, layout: str, impl: str = "eager") -> list[Anchor]:
    """The rows of a CSV of vitbench (that ran as `impl` on the card) or of timm's benchmark.py, whose dtype and layout
    are those that are given.

    Raises: InputError where it is neither, or has no such row.
    """
    if not path.is_file():
        raise InputError(f"--anchors {path} does not exist")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        header, rows = reader.fieldnames or [], list(reader)
    if {"model", "infer_samples_per_sec", "infer_batch_size", "infer_img_size"} <= set(header):
        found = [_of_timm(row, dtype, layout, impl) for row in rows if row["infer_samples_per_sec"]]
    elif {"model", "img_per_s", "batch", "resolution", "impl", "mode", "status", "device_name"} <= set(header):
        others = {row["device_name"] for row in rows if of_device(row["device_name"]) != card}
        found = [
            Anchor(
                Setting(row["model"], parse_resolution(row["resolution"]), row["layout"], row["dtype"], impl=impl),
                int(row["batch"]),
                float(row["img_per_s"]),
            )
            for row in rows
            if (row["status"], row["mode"], row["impl"]) == ("ok", "infer", impl)
            and of_device(row["device_name"]) == card
            and row["dtype"] in DTYPES
            and row["img_per_s"]
        ]
        if not found and others:
            raise InputError(f"--anchors {path} has no row of {card.name}, but of {', '.join(sorted(others))}")
    else:
        raise InputError(f"--anchors {path} is neither a CSV of vitbench nor one of timm's benchmark.py --bench infer")
    if not found:
        raise InputError(f"--anchors {path} has no row of inference that ran as {impl}")
    return found


def _of_timm(row: dict[str, str], dtype: str, layout: str, impl: str) -> Anchor:
    size = parse_resolution(row["infer_img_size"])
    setting = Setting(f"timm:{row['model']}", size, layout, dtype, impl=impl)
    return Anchor(setting, int(float(row["infer_batch_size"])), float(row["infer_samples_per_sec"]))


def factors(card: Card, anchors: Sequence[Anchor]) -> Anchored:
    """Of arithmetic and of bandwidth, beside what is predicted without: those that the anchors are best explained by.

    Raises: InputError where no anchor's model can be traced.
    """
    for anchor in anchors:
        selection.entry(anchor.setting.model)
    answers = [ask.ask(anchor.setting) for anchor in anchors]
    usable = [(anchor, answer) for anchor, answer in zip(anchors, answers, strict=True) if not answer.reason]
    if not usable:
        raise InputError(f"--anchors: no model of them can be traced: {answers[0].reason}")
    table = Table.of(answer.kernels for _, answer in usable)
    batch = np.array([float(anchor.batch) for anchor, _ in usable])
    rate = np.array([anchor.img_per_s for anchor, _ in usable])
    fitted = calibration.fitted(anchors[0].setting.impl)
    moved = explained(table, fitted.parameters, fitted.device(card), batch, rate)
    return Anchored(*moved, len({answer.family for _, answer in usable}))


def explained(table: Table, parameters: Parameters, device: Device, batch: Column, rate: Column) -> tuple[float, float]:
    """The factors by which a device makes the most likely of measured images a second of a table's models."""

    def residuals(point: Column) -> Column:
        times = table.sums(seconds(table, parameters, device.sustained(*np.exp(point)), batch))
        return np.concatenate([soft(np.log(batch / times / rate)) / _MODEL, point / _PLAUSIBLE])

    point = np.zeros(2)
    for _ in range(_STEPS):  # Gauss-Newton
        now = residuals(point)
        slopes = np.stack([(residuals(point + step) - now) / _SMALL for step in _SMALL * np.eye(2)], axis=1)
        point = point - np.linalg.lstsq(slopes, now, rcond=None)[0]
    arithmetic, bandwidth = np.exp(point)
    return float(arithmetic), float(bandwidth)


def told(card: Card, anchors: Sequence[Anchor], moved: Anchored) -> str:
    few = "" if moved.families >= ADVISED else f"; {ADVISED} of different families are advised, which narrow intervals"
    return (
        f"{len(anchors)} anchors of {moved.families} families: {card.name} sustains {moved.arithmetic:.2f} x the "
        f"matrix rate and {moved.bandwidth:.2f} x the bandwidth that were assumed{few}"
    )


__all__ = ["Anchor", "explained", "factors", "read", "told"]
