"""What is to be measured: a grid of options becomes a list of cases. Imports no torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vitbench.bench import selection
from vitbench.bench.selection import check_resolution
from vitbench.catalog import Resolution, format_resolution, parse_resolution
from vitbench.errors import InputError, nearest

MODES = ("infer", "train")
DTYPES = ("fp32", "tf32", "bf16", "fp16", "amp")
LAYOUTS = ("nchw", "nhwc")


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


@dataclass(frozen=True)
class Grid:
    """The options of a sweep, already split; `resolutions` may hold "native" and factors such as "x1.5"."""

    models: Sequence[str]
    impls: Sequence[str]
    modes: Sequence[str]
    dtypes: Sequence[str]
    layouts: Sequence[str]
    resolutions: Sequence[str]
    batches: Sequence[int]
    device: str


#: What timm and torch call these values; timm's "both" modes are two of ours.
SYNONYMS = {
    "float": "fp32", "float32": "fp32", "half": "fp16", "float16": "fp16", "bfloat16": "bf16",
    "channels_last": "nhwc", "channels_first": "nchw", "contiguous_format": "nchw",
    "inductor": "compile", "inference": "infer", "training": "train", "both": "infer,train",
}  # fmt: skip


def split(text: str, option: str, allowed: Sequence[str]) -> list[str]:
    """Comma-separated values, each one of `allowed` or a synonym of it, without repeats.

    Raises: InputError naming the nearest allowed value.
    """
    words = [value.strip() for value in text.split(",")]
    plain = ",".join(SYNONYMS.get(word.removeprefix("torch.").lower(), word) for word in words if word)
    values = list(dict.fromkeys(plain.split(","))) if plain else []
    if not values:
        raise InputError(f"{option} is empty; allowed: {', '.join(allowed)}")
    for value in values:
        if value not in allowed:
            raise InputError(f"{option} {value!r} is unknown: {nearest(value, allowed)}")
    return values


def split_batches(text: str) -> list[int]:
    """Comma-separated positive whole numbers, without repeats.

    Raises: InputError.
    """
    values = [value.strip() for value in text.split(",") if value.strip()]
    for value in values or [text]:
        if not re.fullmatch(r"[0-9]+", value) or int(value) < 1:
            raise InputError(f"batch {value!r} is not a positive whole number")
    return list(dict.fromkeys(int(value) for value in values))


def split_resolutions(text: str) -> list[str]:
    """Comma-separated sizes, "native", or factors of the native size such as "x0.75".

    Raises: InputError.
    """
    values = list(dict.fromkeys(value.strip().lower() for value in text.split(",") if value.strip()))
    if not values:
        raise InputError("resolution is empty; give a size such as 224, HEIGHTxWIDTH, or native")
    for value in values:
        if value != "native" and not re.fullmatch(r"x[0-9.]+", value):
            parse_resolution(value)
    return values


def _resolve(model: str, text: str) -> Resolution:
    entry = selection.entry(model)
    if text == "native":
        return entry.resolution
    if text.startswith("x"):
        step = max(entry.resolution_multiple, 16)
        step = step if step % entry.resolution_multiple == 0 else entry.resolution_multiple
        height, width = (max(step, round(side * float(text[1:]) / step) * step) for side in entry.resolution)
        return height, width
    resolution = parse_resolution(text)
    check_resolution(model, resolution)
    return resolution


def expand(grid: Grid) -> list[Case]:
    """Every case of the grid; those that differ only in implementation are neighbours.

    Raises: InputError when a model cannot take a resolution.
    """
    cases: list[Case] = []
    for model in grid.models:
        resolutions = dict.fromkeys(_resolve(model, text) for text in grid.resolutions)
        for resolution, dtype, layout, mode, batch, impl in itertools.product(
            resolutions, grid.dtypes, grid.layouts, grid.modes, grid.batches, grid.impls
        ):
            cases.append(Case(model, impl, mode, dtype, layout, resolution, batch, grid.device))
    return cases


def group(cases: Iterable[Case]) -> list[list[Case]]:
    """Neighbours that differ only in implementation, which are timed interleaved."""
    return [list(members) for _, members in itertools.groupby(cases, key=lambda case: case.comparison)]
