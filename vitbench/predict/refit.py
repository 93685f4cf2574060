"""Fits the parameters to the published figures: `python -m vitbench.predict.refit` writes parameters.csv."""

from __future__ import annotations

import sys
from dataclasses import asdict

import numpy as np

from vitbench.predict.calibration import PARAMETERS, Fitted, write_parameters
from vitbench.predict.fit import fit
from vitbench.predict.published import figures, join, traced


def refit(begin: Fitted | None = None) -> Fitted:
    """To every figure in published.csv; see `fit`."""
    joined = join(traced(), figures())
    return fit(joined.table, joined.measured, np.ones(len(joined.known), bool), begin)


def main() -> int:
    found = refit()
    write_parameters(found)
    for name, value in asdict(found.parameters).items():
        print(f"{name:18} {value:.4g}")
    for card, (arithmetic, bandwidth) in found.sustained.items():
        print(f"{card:18} arithmetic x {arithmetic:.3f}, bandwidth x {bandwidth:.3f}")
    print(f"wrote {PARAMETERS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
