"""Fits the parameters to the published figures: `python -m vitbench.predict.refit` writes parameters.csv.

And parameters-compile.csv, for compiled models.
"""

from __future__ import annotations

import sys
from dataclasses import asdict

import numpy as np

from vitbench.predict.calibration import PARAMETERS, Fitted, write_parameters
from vitbench.predict.fit import fit
from vitbench.predict.published import fitted_to
from vitbench.predict.setting import IMPLS


def refit(impl: str = "eager", begin: Fitted | None = None) -> Fitted:
    """To every figure in published.csv or compiled.csv; see `fit`."""
    joined = fitted_to(impl)
    return fit(joined.table, joined.measured, np.ones(len(joined.known), bool), begin)


def main() -> int:
    for impl in IMPLS:
        found = refit(impl)
        write_parameters(found, PARAMETERS[impl])
        for name, value in asdict(found.parameters).items():
            print(f"{name:18} {value:.4g}")
        for card, (arithmetic, bandwidth) in found.sustained.items():
            print(f"{card:18} arithmetic x {arithmetic:.3f}, bandwidth x {bandwidth:.3f}")
        print(f"wrote {PARAMETERS[impl]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
