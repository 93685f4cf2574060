"""Published throughputs and the kernels of the models that they are of, side by side. Imports no torch.

published.csv holds timm's results/benchmark-infer-amp-nchw-{pt240-cu124-rtx3090, pt291-cu128-4090,
pt291-cu130-pro6000maxq}.csv (Apache-2.0, https://github.com/huggingface/pytorch-image-models). They do not say how
timm's benchmark.py was called. Predictions agree where layer norms run in the lower precision (`--fast-norm`), and with
those of torch 2.9 where branches are merged (`--reparam`): so both are assumed here.

compiled.csv holds benchmark-infer-amp-nchw-pt291-{cu130-pro6000maxq, cu128-4090}-dynamo.csv of the same folder: models
through torch.compile. judging-compiled.csv holds those of cu130-5090-dynamo.csv, and of bf16 autocast instead of fp16
(benchmark-infer-amp_bf16-nchw-pt291-cu130-pro6000maxq-dynamo.csv).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitbench.predict.fit import Measured
from vitbench.predict.table import Known, Table, read

#: The same of results that no parameter was fitted to, nor any choice made by: a card, and another layout.
JUDGING = Path(__file__).with_name("judging.csv")
PUBLISHED = Path(__file__).with_name("published.csv")
TRACED = Path(__file__).with_name("traced.csv.xz")
#: The same of compiled models.
COMPILED, JUDGING_COMPILED, TRACED_COMPILED = (
    Path(__file__).with_name(name) for name in ("compiled.csv", "judging-compiled.csv", "traced-compiled.csv.xz")
)
#: torch's versions whose figures are of models with merged branches.
_MERGED = "2.9"


class Figure(NamedTuple):
    """Images a second of a model, as published."""

    gpu: str
    layout: str
    torch: str
    model: str
    resolution: int
    batch: int
    img_per_s: float
    dtype: str = "amp-fp16"

    @property
    def reparam(self) -> bool:
        return self.torch.startswith(_MERGED)


def figures(path: Path = PUBLISHED) -> list[Figure]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Figure(r["gpu"], r["layout"], r["torch"], r["model"], int(r["resolution"]), int(r["batch"]),
                   float(r["img_per_s"]), r.get("dtype", "amp-fp16"))
            for r in csv.DictReader(file)
        ]  # fmt: skip


@cache
def traced(path: Path = TRACED) -> tuple[Known, ...]:
    """The kernels of every model that a figure is of, in the forms that figures are of."""
    return tuple(read(path))


@dataclass(frozen=True)
class Joined:
    """Models in a table, and what was measured of them: NaN where nothing was."""

    known: Sequence[Known]
    table: Table
    measured: Sequence[Measured]


def join(known: Sequence[Known], found: Sequence[Figure]) -> Joined:
    """Each figure beside the model in the form that it is of: with merged branches where there are some."""
    number = {(k.model, k.resolution, k.layout, k.reparam): position for position, k in enumerate(known)}
    measured = []
    for gpu, layout in dict.fromkeys((figure.gpu, figure.layout) for figure in found):
        rate, batch = np.full(len(known), np.nan), np.ones(len(known))
        for figure in found:
            if (figure.gpu, figure.layout) != (gpu, layout):
                continue
            plain = (figure.model, figure.resolution, layout, False)
            position = number.get((*plain[:3], figure.reparam), number.get(plain))
            if position is not None:
                rate[position], batch[position] = figure.img_per_s, figure.batch
        measured.append(Measured(gpu, rate, batch))
    return Joined(known, Table.of(k.kernels for k in known), measured)


def fitted_to(impl: str) -> Joined:
    """The figures that parameters are fitted to."""
    return join(traced(), figures()) if impl == "eager" else join(traced(TRACED_COMPILED), figures(COMPILED))


def judged_by(impl: str) -> Iterator[Joined]:
    """The figures that nothing is fitted to, those of a layout at a time."""
    chosen, known = (figures(JUDGING), traced()) if impl == "eager" else (
        figures(JUDGING_COMPILED), traced(TRACED_COMPILED)
    )  # fmt: skip
    for layout in dict.fromkeys(figure.layout for figure in chosen):
        yield join([one for one in known if one.layout == layout], [one for one in chosen if one.layout == layout])


__all__ = [
    "COMPILED",
    "JUDGING",
    "JUDGING_COMPILED",
    "PUBLISHED",
    "TRACED",
    "TRACED_COMPILED",
    "Figure",
    "Joined",
    "figures",
    "fitted_to",
    "join",
    "judged_by",
    "traced",
]
