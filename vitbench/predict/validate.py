"""How far off the predictions in a sweep's rows were. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitbench.errors import InputError
from vitbench.predict.options import ValidatePredictionsOptions
from vitbench.results import journal
from vitbench.results.row import Row


def run(given: ValidatePredictionsOptions) -> int:
    """Prints a line for each card, batch and dtype, then for all.

    Raises: InputError where no row has both figures.
    """
    rows = [row for row in journal.read(given.results) if row.speed.img_per_s and row.speed.predicted_img_per_s]
    if not rows:
        raise InputError(
            f"{given.results} has no row with a prediction: those of eager inference on a GPU that "
            "`vitbench predict --gpu list` names have one"
        )
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.environment.device_name, row.batch, row.dtype), []).append(row)
    print(f"{'device':32} {'batch':>5} {'dtype':8} {'rows':>5} {'median':>7} {'p90':>7} {'bias':>7}")
    for (device, batch, dtype), members in groups.items():
        print(f"{device:32} {batch:5} {dtype:8} {_told(members)}")
    if len(groups) > 1:
        print(f"{'all':32} {'':5} {'':8} {_told(rows)}")
    return 0


def _told(rows: Sequence[Row]) -> str:
    errors = np.log([(row.speed.predicted_img_per_s or 0) / (row.speed.img_per_s or 1) for row in rows])
    median, p90 = np.quantile(np.abs(errors), (0.5, 0.9))
    return f"{len(rows):5} {median:7.1%} {p90:7.1%} {np.median(errors):+7.1%}"


__all__ = ["run"]
