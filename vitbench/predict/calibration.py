"""What was fitted to published throughputs and how far it is off: parameters.csv and errors.csv. Imports no torch.

Compiled models have a file of each of their own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vitbench import cards
from vitbench.predict.cost import Device, Parameters

HERE = Path(__file__).parent
#: By how models run.
PARAMETERS = {"eager": HERE / "parameters.csv", "compile": HERE / "parameters-compile.csv"}
ERRORS = {"eager": HERE / "errors.csv", "compile": HERE / "errors-compile.csv"}
#: Shares of the predicted time in rare kernels that part the error statistics.
SOME, MANY = 0.1, 0.3
#: Models that quantiles are taken of.
FEWEST = 20
#: So many measured models of different families are what the statistics of anchored cards are of.
ADVISED = 8


class Anchored(NamedTuple):
    """Factors of arithmetic and of bandwidth beside what is assumed of a card, and of how many families they are."""

    arithmetic: float
    bandwidth: float
    families: int


@dataclass(frozen=True)
class Fitted:
    """Parameters, and what each measured card sustains beside the others: factors of arithmetic and of bandwidth."""

    parameters: Parameters
    sustained: Mapping[str, tuple[float, float]]

    def device(self, card: cards.Card) -> Device:
        return Device.of(card).sustained(*self.sustained.get(card.name, (1.0, 1.0)))


def write_parameters(fitted: Fitted, path: Path) -> None:
    """`name,card,value`: parameters without a card, factors with theirs."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("name", "card", "value"))
        writer.writerows((name, "", f"{value:.4g}") for name, value in asdict(fitted.parameters).items())
        for card, factors in fitted.sustained.items():
            for name, value in zip(("arithmetic", "bandwidth"), factors, strict=True):
                writer.writerow((name, card, f"{value:.4g}"))


@cache
def fitted(impl: str = "eager") -> Fitted:
    """The committed parameters."""
    with PARAMETERS[impl].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = {row["name"]: float(row["value"]) for row in rows if not row["card"]}
    of_card = {(row["card"], row["name"]): float(row["value"]) for row in rows if row["card"]}
    names = dict.fromkeys(card for card, _ in of_card)
    return Fitted(
        Parameters(**values), {name: (of_card[name, "arithmetic"], of_card[name, "bandwidth"]) for name in names}
    )


@dataclass(frozen=True)
class Errors:
    """Of predictions for what was held out: logarithms of predicted / measured.

    Attributes:
        held_out: "family" (the model's family), "card", "anchors" (the card, but for a few of its models), "layout", or
            "dtype" (bf16, and the family).
        rare: which models: "all", or by the share of time in rare kernels "few", "some", "many".
        median, p90: of the absolute error.
        low, high: between these the error of four in five models lies.
        spearman: correlation of ranks.
    """

    held_out: str
    gpu: str
    layout: str
    rare: str
    models: int
    median: float
    p90: float
    low: float
    high: float
    spearman: float


def rarity(share: float) -> str:
    return "few" if share < SOME else "some" if share < MANY else "many"


def write_errors(found: Iterable[Errors], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Errors)])
        for one in found:
            writer.writerow([f"{value:.4f}" if isinstance(value, float) else value for value in astuple(one)])


@cache
def errors(impl: str = "eager") -> tuple[Errors, ...]:
    """The committed statistics of results/truth/throughput.csv, or throughput-compile.csv."""
    with ERRORS[impl].open(newline="", encoding="utf-8") as file:
        return tuple(
            Errors(
                row["held_out"], row["gpu"], row["layout"], row["rare"], int(row["models"]),
                *(float(row[name]) for name in ("median", "p90", "low", "high", "spearman")),
            )
            for row in csv.DictReader(file)
        )  # fmt: skip


def expected(card: str, layout: str, rare: float, impl: str = "eager", families: int = 0) -> Errors:
    """The statistics that speak most closely of a prediction: those of the card, else those of cards never seen, or of
    which nothing was known but anchors of as many families as were judged.

    Of a card never seen nobody knows in which direction it errs.
    """
    held_out = "layout" if layout == "nhwc" else "family"
    exact = [one for one in errors(impl) if (one.held_out, one.gpu) == (held_out, card)]
    unseen = "card" if families < ADVISED else "anchors"
    of_others = [one for one in errors(impl) if one.held_out == unseen]
    found = max(_of_kind(exact or of_others, rarity(rare)), key=lambda one: one.high - one.low)
    if exact:
        return replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))
    either = max(-found.low, found.high)
    return replace(found, low=-either, high=either)


def _of_kind(found: Sequence[Errors], rare: str) -> list[Errors]:
    """Those of models with so much in rare kernels; where there are too few of them, those of all."""
    return [one for one in found if one.rare == rare and one.models >= FEWEST] or [
        one for one in found if one.rare == "all"
    ]


_OF = {
    "eager": "Predicted images/s of eager inference at large batches; not latency at batch 1, not torch.compile.",
    "compile": "Predicted images/s of inference through torch.compile at large batches; not latency at batch 1.",
}


def statement(impls: Iterable[str] = ("eager",)) -> str:
    """What predictions are, and how far off they were for what was held out."""
    return "\n".join(_statement(impl) for impl in impls)


def _statement(impl: str) -> str:
    families = [one for one in errors(impl) if one.rare == "all" and one.held_out == "family"]
    unseen, anchored = (
        [one for one in errors(impl) if one.rare == "all" and one.held_out == held_out]
        for held_out in ("card", "anchors")
    )
    lines = [
        _OF[impl],
        "Beside timm's published measurements, of which the model's family was held out: median error "
        + ", ".join(f"{_percent(one.median)} (90 % within {_percent(one.p90)}) on {one.gpu}" for one in families),
        f"Of a card never seen: {_each(unseen)}",
        f"Of one with {ADVISED} anchors: {_each(anchored)}",
    ]
    return "\n".join(lines)


def _each(found: Iterable[Errors]) -> str:
    return ", ".join(f"{_percent(one.median)} ({_percent(one.p90)}) on {one.gpu}" for one in found)


def _percent(logarithm: float) -> str:
    return f"{100 * logarithm:.1f} %"


__all__ = ["ADVISED", "ERRORS", "PARAMETERS", "Anchored", "Errors", "Fitted", "errors", "expected", "fitted", "rarity",
           "statement", "write_errors", "write_parameters"]  # fmt: skip
