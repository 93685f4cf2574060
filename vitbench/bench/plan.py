"""What is to be measured: a grid of options becomes a list of cases. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vitbench import selection
from vitbench.catalog import Resolution, format_resolution, parse_resolution
from vitbench.errors import InputError


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: a model under one implementation on one input shape.

    dtype "amp" is fp32 weights under bf16 autocast, "tf32" is fp32 with TF32 matrix products;
    layout "nhwc" is torch's channels_last.
    """

    model: str
    impl: str
    mode: str
    dtype: str
    layout: str
    resolution: Resolution
    batch: int
    device: str

    @property
    def id(self) -> str:
        """The CSV key, the resume key and the gate key, such as cmt_s/eager/infer/bf16/nhwc/224/b64/cuda."""
        size = format_resolution(self.resolution)
        return f"{self.model}/{self.impl}/{self.mode}/{self.dtype}/{self.layout}/{size}/b{self.batch}/{self.device}"

    @property
    def comparison(self) -> tuple[object, ...]:
        """Equal for cases that differ only in implementation."""
        return (self.model, self.mode, self.dtype, self.layout, self.resolution, self.batch, self.device)


def parse(case_id: str) -> Case:
    """The case that has this id.

    Raises: ValueError when it is none.
    """
    parts = case_id.rsplit("/", 7)
    if len(parts) != 8 or not parts[6].startswith("b"):
        raise ValueError(f"{case_id!r} is no id of a case")
    model, impl, mode, dtype, layout, size, batch, device = parts
    try:
        return Case(model, impl, mode, dtype, layout, parse_resolution(size), int(batch[1:]), device)
    except InputError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Grid:
    """The options of a sweep, already split; `resolutions` may hold "native" and factors such as "x1.5".

    native: the size that these mean where a file configures the model; None for each model's own.
    """

    models: Sequence[str]
    impls: Sequence[str]
    modes: Sequence[str]
    dtypes: Sequence[str]
    layouts: Sequence[str]
    resolutions: Sequence[str]
    batches: Sequence[int]
    device: str
    native: Resolution | None = None


def expand(grid: Grid) -> list[Case]:
    """Every case of the grid; those that differ only in implementation are neighbours.

    Raises: InputError when a model cannot take a resolution.
    """
    cases: list[Case] = []
    for model in grid.models:
        resolutions = dict.fromkeys(selection.resolve(model, text, grid.native) for text in grid.resolutions)
        for resolution, dtype, layout, mode, batch, impl in itertools.product(
            resolutions, grid.dtypes, grid.layouts, grid.modes, grid.batches, grid.impls
        ):
            cases.append(Case(model, impl, mode, dtype, layout, resolution, batch, grid.device))
    return cases


def group(cases: Iterable[Case]) -> list[list[Case]]:
    """Neighbours that differ only in implementation, which are timed interleaved."""
    return [list(members) for _, members in itertools.groupby(cases, key=lambda case: case.comparison)]
