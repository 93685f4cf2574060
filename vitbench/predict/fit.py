"""The parameters that published throughputs are best explained by. It needs scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vitbench import cards
from vitbench.predict.calibration import Fitted
from vitbench.predict.cost import Device, Parameters, from_vector, plausible, seconds, to_vector
from vitbench.predict.table import Column, Table

#: Beyond this error of the logarithm a model pulls with constant force, as one of another kind.
_ROBUST = 0.05
#: What a parameter at the edge of the plausible weighs, as an error of every model.
_PRIOR = 0.012
#: How far cards plausibly differ in what they sustain of their data sheets, as factors' logarithms.
_FACTOR = 0.1


@dataclass(frozen=True)
class Measured:
    """Images a second of the models of a table on a card, and at which batch; NaN where there is none."""

    card: str
    rate: Column
    batch: Column

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        return np.isfinite(self.rate)


def device(fitted: Fitted, card: str) -> Device:
    return fitted.device(cards.find(card))


def predict(table: Table, fitted: Fitted, card: str, batch: Column) -> Column:
    """Images a second of each model of a table."""
    with np.errstate(divide="ignore"):  # a model whose kernels were left out takes no time
        return batch / table.sums(seconds(table, fitted.parameters, device(fitted, card), batch))


def fit(table: Table, measured: Sequence[Measured], kept: NDArray[np.bool_], begin: Fitted | None = None) -> Fitted:
    """To the kept models of all cards; `begin` is where the search starts, by default at the plausible."""
    from scipy.optimize import least_squares

    parts = []
    for one in measured:
        chosen = kept & one.known
        parts.append((one.card, table.only(chosen[table.owner]), chosen, one.batch, np.log(one.rate[chosen])))
    total = sum(int(chosen.sum()) for _, _, chosen, _, _ in parts)
    prior = np.concatenate([to_vector(Parameters()), np.zeros(2 * len(parts))])
    start = prior if begin is None else _packed(begin, [card for card, *_ in parts])
    width = np.concatenate([plausible(), np.full(2 * len(parts), _FACTOR)])

    def residuals(point: Column) -> Column:
        fitted = _unpacked(point, [card for card, *_ in parts])
        errors = np.concatenate(
            [
                np.log(predict(part, fitted, card, np.where(chosen, batch, 1.0))[chosen]) - measured_log
                for card, part, chosen, batch, measured_log in parts
            ]
        )
        return np.concatenate([soft(errors), _PRIOR * np.sqrt(total) * (point - prior) / width])

    found = least_squares(residuals, start, ftol=1e-5, xtol=1e-5, max_nfev=30)
    return _unpacked(found.x, [card for card, *_ in parts])


def soft(errors: Column) -> Column:
    """Errors whose squares grow as the errors do where these are large."""
    return np.asarray(np.sign(errors) * _ROBUST * np.sqrt(2 * (np.sqrt(1 + (errors / _ROBUST) ** 2) - 1)))


def _packed(fitted: Fitted, names: Sequence[str]) -> Column:
    factors = np.log([fitted.sustained.get(name, (1.0, 1.0)) for name in names]).ravel()
    return np.concatenate([to_vector(fitted.parameters), factors])


def _unpacked(point: Column, names: Sequence[str]) -> Fitted:
    count = len(point) - 2 * len(names)
    factors = np.exp(point[count:]).reshape(-1, 2)
    sustained = {name: (float(a), float(b)) for name, (a, b) in zip(names, factors, strict=True)}
    return Fitted(from_vector(point[:count]), sustained)


__all__ = ["Measured", "device", "fit", "predict", "soft"]
