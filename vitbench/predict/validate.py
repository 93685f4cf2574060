"""How far off the predictions in a sweep's rows were. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitbench import columns
from vitbench.columns import Column, Kind
from vitbench.errors import InputError
from vitbench.predict.options import ValidatePredictionsOptions
from vitbench.results import journal
from vitbench.results.row import Row


def run(given: ValidatePredictionsOptions) -> int:
    """Prints a line for each card, batch, dtype and impl, then for all.

    Raises: InputError where no row has both figures.
    """
    rows = [row for row in journal.read(given.results) if row.speed.img_per_s and row.speed.predicted_img_per_s]
    if not rows:
        raise InputError(
            f"{given.results} has no row with a prediction: those of eager or compiled inference on a GPU that "
            "`vitbench predict --gpu list` names have one"
        )
    groups: dict[tuple[str, int, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.environment.device_name, row.batch, row.dtype, row.impl), []).append(row)
    lines = [(*key, *_errors(members)) for key, members in groups.items()]
    columns.show(table([*lines, ("all", None, "", "", *_errors(rows))] if len(groups) > 1 else lines), given)
    return 0


_HEADER = ("device", "batch", "dtype", "impl", "rows", "median", "p90", "bias")


def table(lines: Sequence[tuple[object, ...]]) -> list[Column]:
    """A line for each card, batch, dtype and impl; errors are of the logarithm of predicted over measured."""
    values = list(zip(*lines, strict=True)) or [()] * len(_HEADER)
    kinds: dict[str, Kind] = {"device": "key", "dtype": "word", "impl": "word"}
    shows = {"median": "{:.1%}".format, "p90": "{:.1%}".format, "bias": "{:+.1%}".format}
    return [
        Column(name, of_all, kinds.get(name, "number"), shows.get(name, columns.plain), quiet=name == "impl")
        for name, of_all in zip(_HEADER, values, strict=True)
    ]


def _errors(rows: Sequence[Row]) -> tuple[int, float, float, float]:
    errors = np.log([(row.speed.predicted_img_per_s or 0) / (row.speed.img_per_s or 1) for row in rows])
    median, p90 = np.quantile(np.abs(errors), (0.5, 0.9))
    return len(rows), float(median), float(p90), float(np.median(errors))


__all__ = ["run", "table"]
