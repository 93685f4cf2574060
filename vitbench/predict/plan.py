"""From options to rows. Imports no torch where every model is known."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from vitbench import cards, selection
from vitbench.cards import Card
from vitbench.catalog import Resolution, format_resolution
from vitbench.errors import InputError
from vitbench.memory import store
from vitbench.predict import accuracy, ask
from vitbench.predict.calibration import Anchored
from vitbench.predict.forecast import Forecast, forecast
from vitbench.predict.options import PredictOptions
from vitbench.predict.setting import DTYPES, IMPLS, Answer, Setting
from vitbench.predict.table import macs_of

Factors = Mapping[str, Anchored]


@dataclass(frozen=True)
class Row:
    """A model on a card, as the CSV has it; empty where `reason` says why. Shares are of the time."""

    model: str
    family: str
    gpu: str
    resolution: str
    batch: int
    dtype: str
    layout: str
    impl: str = "eager"
    img_per_s: float | None = None
    low: float | None = None
    high: float | None = None
    ms: float | None = None
    convolutions: float | None = None
    products: float | None = None
    attention: float | None = None
    memory_bound: float | None = None
    rare: float | None = None
    memory_gib: float | None = None
    fits: bool | None = None
    params_m: float | None = None
    gmacs: float | None = None
    top1: float | None = None
    top1_source: str = ""
    note: str = ""
    reason: str = ""


SORTS: dict[str, Callable[[Row], tuple[object, ...]]] = {
    "img_per_s": lambda row: (-(row.img_per_s or 0.0), row.model),
    "top1": lambda row: (-(row.top1 or 0.0), -(row.img_per_s or 0.0), row.model),
    "memory": lambda row: (row.memory_gib or float("inf"), row.model),
    "model": lambda row: (row.model, -(row.img_per_s or 0.0)),
}


def cards_of(given: PredictOptions) -> list[Card]:
    """Raises: InputError."""
    names = [name.strip() for name in given.gpu.split(",") if name.strip()]
    if not names:
        raise InputError("--gpu is empty: name a card, `--gpu list` prints them")
    return list(dict.fromkeys(cards.find(name) for name in names))


def check(given: PredictOptions) -> None:
    """Raises: InputError on what cannot be used, before anything is traced."""
    for option in ("min_top1", "min_img_per_s", "max_mem"):
        value = getattr(given, option)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{option.replace('_', '-')} {value:g} is not a positive number")
    if given.min_top1 is not None and given.min_top1 > 100:
        raise InputError(f"--min-top1 {given.min_top1:g} is more than 100 percent")
    cards_of(given)
    selection.split_batches(given.batch)
    selection.split_resolutions(given.resolution)
    selection.split(given.dtype, "dtype", DTYPES)
    selection.split(given.layout, "layout", selection.LAYOUTS)
    selection.split(given.impl, "impl", IMPLS)
    models(given.explain or given.model, given.resolution)


@dataclass(frozen=True)
class Sized:
    """A model at a size, or the reason why it has none there."""

    model: str
    resolution: Resolution
    asked: str
    reason: str = ""


def models(patterns: str, resolutions: str) -> list[Sized]:
    """The models at their sizes; those of other libraries from what was kept, as importing one takes seconds.

    Raises: InputError.
    """
    if ":" not in patterns:
        return _sized(patterns, resolutions)
    key = hashlib.sha256(f"{patterns} {resolutions}".encode()).hexdigest()[:24]
    path = ask.folder() / f"models-{key}.json"
    kept = store.read_file(path)
    if not kept:
        kept = {"models": [(one.model, one.resolution, one.asked, one.reason) for one in _sized(patterns, resolutions)]}
        store.write_file(path, kept)
    return [Sized(model, (height, width), asked, reason) for model, (height, width), asked, reason in kept["models"]]


def _sized(patterns: str, resolutions: str) -> list[Sized]:
    found: dict[tuple[str, Resolution], Sized] = {}
    for model, size in itertools.product(selection.match(patterns), selection.split_resolutions(resolutions)):
        try:
            resolution = selection.resolve(model, size)
            found.setdefault((model, resolution), Sized(model, resolution, size))
        except InputError as error:
            found[model, (0, len(found))] = Sized(model, (0, 0), size, str(error))
    return list(found.values())


def settings(given: PredictOptions) -> list[tuple[Sized, Setting]]:
    """Every model at every size, dtype, layout and impl.

    Raises: InputError.
    """
    return [
        (sized, Setting(sized.model, sized.resolution, layout, dtype, given.fast_norm, given.reparam, impl=impl))
        for sized in models(given.model, given.resolution)
        for dtype in selection.split(given.dtype, "dtype", DTYPES)
        for layout in selection.split(given.layout, "layout", selection.LAYOUTS)
        for impl in selection.split(given.impl, "impl", IMPLS)
    ]


def rows(given: PredictOptions, factors: Factors, told: Callable[[int, int], None]) -> list[Row]:
    """A row for each setting, card and batch that passes the filters; failures always pass.

    Raises: InputError.
    """
    check(given)
    found = settings(given)
    asked = [setting for sized, setting in found if not sized.reason]
    answers = dict(zip(asked, ask.ask_all(asked, told), strict=True))
    named, batches = cards_of(given), selection.split_batches(given.batch)
    made = [
        row_of(sized, setting, answers.get(setting), card, batch, factors.get(card.name))
        for sized, setting in found
        for card in named
        for batch in batches
    ]
    return sorted((row for row in made if _passes(row, given)), key=SORTS.get(given.sort, SORTS["img_per_s"]))


def row_of(
    sized: Sized,
    setting: Setting,
    answer: Answer | None,
    card: Card,
    batch: int,
    factors: Anchored | None = None,
) -> Row:
    """Of a setting that was answered, or cannot be asked."""
    size = sized.asked if sized.reason else format_resolution(setting.resolution)
    family = answer.family if answer else ""
    key = (setting.model, family, card.name, size, batch, setting.dtype, setting.layout, setting.impl)
    if answer is None or answer.reason:
        return Row(*key, reason=sized.reason if answer is None else answer.reason)
    made = forecast(answer, setting, card, batch, factors)
    published = accuracy.top1(setting.model, setting.resolution)
    return Row(
        *key,
        **{field.name: getattr(made, field.name) for field in fields(Forecast)},
        params_m=answer.parameters / 1e6,
        gmacs=macs_of(answer.kernels) / 1e9,
        top1=published.percent if published else None,
        top1_source=published.source if published else "",
    )


def _passes(row: Row, given: PredictOptions) -> bool:
    if row.img_per_s is None or row.memory_gib is None:
        return True
    return (
        (given.min_top1 is None or (row.top1 is not None and row.top1 >= given.min_top1))
        and (given.min_img_per_s is None or row.img_per_s >= given.min_img_per_s)
        and (given.max_mem is None or row.memory_gib <= given.max_mem)
    )


def best(found: Sequence[Row]) -> list[Row]:
    """Of each card and impl the rows with a top-1 that no other row beats in both top-1 and images a second."""
    front: list[Row] = []
    for panel in dict.fromkeys((row.gpu, row.impl) for row in found):
        reached = 0.0
        of_it = [row for row in found if (row.gpu, row.impl) == panel]
        known = [row for row in of_it if row.top1 is not None and row.img_per_s is not None]
        for row in sorted(known, key=lambda row: (-(row.img_per_s or 0.0), -(row.top1 or 0.0))):
            if (row.top1 or 0.0) > reached:
                reached = row.top1 or 0.0
                front.append(row)
    return front


__all__ = ["SORTS", "Row", "Sized", "best", "check", "models", "row_of", "rows", "settings"]
