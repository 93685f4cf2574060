"""Predictions beside published throughputs: `python -m vitbench.predict.truth results/truth`.

Every family of models (a module of timm) is predicted with parameters fitted to the others, every card with parameters
fitted to the other cards, once more with factors that a few anchors of the card give, and figures of judging.csv with
the committed ones. Writes throughput.csv and a picture, and the statistics that commands print; throughput-compile.csv
and its statistics are of compiled models.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitbench import drawing
from vitbench.predict import anchors, calibration
from vitbench.predict.calibration import ADVISED, ERRORS, Errors, Fitted, rarity
from vitbench.predict.cost import seconds
from vitbench.predict.fit import Measured, device, fit, predict
from vitbench.predict.published import Joined, fitted_to, judged_by
from vitbench.predict.setting import IMPLS
from vitbench.predict.table import Column, Table

COLUMNS = ("model", "family", "resolution", "gpu", "layout", "impl", "batch", "measured_img_per_s",
           "predicted_img_per_s", "rare", "held_out")  # fmt: skip
#: What is asked: median, 90th percentile and correlation of ranks; of held-out families, and of a card never seen.
FAMILY, CARD = (0.06, 0.17, 0.99), (0.10, 0.25, 0.0)
_GROUPS = 10
#: Choices of anchors; each judges a tenth of the other models, as one choice may be lucky.
_CHOICES = 10
#: Families that are named.
_FAR = 6
Row = dict[str, str]


def rows(joined: Joined) -> list[Row]:
    """Of every figure a prediction with its family held out, then one with its card held out."""
    found: list[Row] = []
    families = sorted({known.family for known in joined.known})
    group = np.array([families.index(known.family) % _GROUPS for known in joined.known])
    everything = np.ones(len(joined.known), bool)
    by_group = [fit(joined.table, joined.measured, group != number) for number in range(_GROUPS)]
    for one in joined.measured:
        parts = [_predicted(joined, fitted, one) for fitted in by_group]
        rates, rare = (np.choose(group, [part[of] for part in parts]) for of in (0, 1))
        found += _rows(joined, one, rates, rare, "family")
    for one in joined.measured:
        fitted = fit(joined.table, [other for other in joined.measured if other is not one], everything)
        found += _unseen(joined, fitted, one)
    return found


def _unseen(joined: Joined, fitted: Fitted, one: Measured) -> Iterator[Row]:
    """Of a card that nothing was fitted to: as it is, and corrected by anchors, each model by those without it."""
    yield from _rows(joined, one, *_predicted(joined, fitted, one), "card")
    known = [int(n) for n in np.flatnonzero(one.known)]
    choices = [_anchors(joined, known, number) for number in range(_CHOICES)]
    corrected = [_corrected(joined, fitted, one, chosen) for chosen in choices]
    rates, rares = ([part[of] for part in corrected] for of in (0, 1))
    turn = np.arange(len(joined.known))
    while len(clash := [n for n in known if n in choices[turn[n] % _CHOICES]]):
        turn[clash] += 1
    yield from _rows(joined, one, np.choose(turn % _CHOICES, rates), np.choose(turn % _CHOICES, rares), "anchors")


def _anchors(joined: Joined, known: Sequence[int], number: int) -> list[int]:
    """As many models as are advised, each of another family: those whose names hash to the least."""
    key = {n: hashlib.sha256(f"{number} {joined.known[n].model}".encode()).digest() for n in known}
    of_family: dict[str, int] = {}
    for n in sorted(known, key=lambda n: (key[n], joined.known[n].resolution)):
        of_family.setdefault(joined.known[n].family, n)
    return list(of_family.values())[:ADVISED]


def _corrected(joined: Joined, fitted: Fitted, one: Measured, chosen: list[int]) -> tuple[Column, Column]:
    table = Table.of(joined.known[n].kernels for n in chosen)
    moved = anchors.explained(table, fitted.parameters, device(fitted, one.card), one.batch[chosen], one.rate[chosen])
    return _predicted(joined, Fitted(fitted.parameters, {one.card: moved}), one)


def judged(joined: Joined, fitted: Fitted) -> list[Row]:
    """Predictions for figures that nothing was fitted to: of another card, in another layout, or in bf16."""
    found: list[Row] = []
    for one in joined.measured:
        if one.card not in fitted.sustained:
            found += _unseen(joined, fitted, one)
            continue
        other = "layout" if joined.known[0].layout != "nchw" else "dtype"
        found += _rows(joined, one, *_predicted(joined, fitted, one), other)
    return found


def _predicted(joined: Joined, fitted: Fitted, one: Measured) -> tuple[Column, Column]:
    """Images a second, and the share of time in rare kernels."""
    rate = predict(joined.table, fitted, one.card, one.batch)
    times = seconds(joined.table, fitted.parameters, device(fitted, one.card), one.batch)
    return rate, joined.table.sums(times * joined.table.rare) * rate / one.batch


def _rows(joined: Joined, one: Measured, rate: Column, rare: Column, held_out: str) -> Iterator[Row]:
    for number, known in enumerate(joined.known):
        if one.known[number]:
            yield {
                "model": known.model,
                "family": known.family,
                "resolution": str(known.resolution),
                "gpu": one.card,
                "layout": known.layout,
                "batch": f"{one.batch[number]:.0f}",
                "measured_img_per_s": f"{one.rate[number]:.2f}",
                "predicted_img_per_s": f"{rate[number]:.4g}",
                "rare": f"{rare[number]:.3f}",
                "held_out": held_out,
            }


def statistics(found: Sequence[Mapping[str, str]]) -> list[Errors]:
    """By what was held out, card and layout: of all models, and by how much of their time is in rare kernels."""
    groups: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for row in found:
        groups.setdefault((row["held_out"], row["gpu"], row["layout"]), []).append(row)
    return [
        _errors(*key, rare, chosen)
        for key, members in groups.items()
        for rare in ("all", "few", "some", "many")
        if len(chosen := [row for row in members if rare in ("all", rarity(float(row["rare"])))]) > 1
    ]


def _errors(held_out: str, gpu: str, layout: str, rare: str, found: Sequence[Mapping[str, str]]) -> Errors:
    predicted, measured = (
        np.log([float(row[f"{name}_img_per_s"]) for row in found]) for name in ("predicted", "measured")
    )
    error = predicted - measured
    low, high = np.quantile(error, (0.1, 0.9))
    median, p90 = np.quantile(np.abs(error), (0.5, 0.9))
    ranks = np.argsort(np.argsort([predicted, measured], axis=1), axis=1).astype(float)
    spearman = np.corrcoef(ranks)[0, 1]
    return Errors(held_out, gpu, layout, rare, len(found), *map(float, (median, p90, low, high, spearman)))


def missed(found: Sequence[Errors]) -> list[str]:
    """What is farther off than is asked."""
    said = []
    for one in found:
        if one.rare != "all" or one.held_out not in ("family", "card", "anchors"):
            continue
        median, p90, spearman = FAMILY if one.held_out == "family" else CARD
        if one.median > median or one.p90 > p90 or one.spearman < spearman:
            said.append(
                f"{one.held_out} held out, {one.gpu}: median {one.median:.1%}, p90 {one.p90:.1%}, Spearman "
                f"{one.spearman:.3f}; asked are {median:.0%}, {p90:.0%}, {spearman:.2f}"
            )
    return said


def why(found: Sequence[Mapping[str, str]]) -> list[str]:
    """Of each card never seen that is farther off than is asked: what its figures have in common, and which are far."""
    said = []
    for gpu in dict.fromkeys(row["gpu"] for row in found if row["held_out"] == "card"):
        rows = [row for row in found if (row["held_out"], row["gpu"]) == ("card", gpu)]
        errors = np.log([float(row["predicted_img_per_s"]) / float(row["measured_img_per_s"]) for row in rows])
        median, p90 = np.quantile(np.abs(errors), (0.5, 0.9))
        if median <= CARD[0] and p90 <= CARD[1]:
            continue
        common = float(np.median(errors))
        rest = np.quantile(np.abs(errors - common), (0.5, 0.9))
        far = Counter(row["family"] for row, error in zip(rows, errors, strict=True) if abs(error) > CARD[1])
        all_of = Counter(row["family"] for row in rows)
        said.append(
            f"{gpu} held out: {np.mean(errors * common > 0):.0%} of the figures are predicted too "
            f"{'fast' if common > 0 else 'slow'}, in the median by {common:+.1%}; without this common factor, which "
            f"anchors correct, errors are {rest[0]:.1%} and {rest[1]:.1%}. More than {CARD[1]:.0%} off are "
            f"{sum(far.values())} of {len(rows)}: "
            + ", ".join(f"{family} {count} of {all_of[family]}" for family, count in far.most_common(_FAR))
        )
    return said


def told(found: Sequence[Errors]) -> str:
    lines = [
        f"{'held out':9} {'gpu':20} {'layout':6} {'rare':5} {'models':>6} {'median':>7} {'p90':>7} {'Spearman':>8}"
    ]
    lines += [
        f"{one.held_out:9} {one.gpu:20} {one.layout:6} {one.rare:5} {one.models:6} {one.median:7.1%} {one.p90:7.1%} "
        f"{one.spearman:8.3f}"
        for one in found
    ]
    return "\n".join(lines)


def summary(found: Sequence[Mapping[str, str]]) -> str:
    """The statistics of all models, and the farthest families."""
    lines = told([one for one in statistics(found) if one.rare == "all"])
    far = ", ".join(f"{family} {error:+.0%}" for family, error, _ in worst(found))
    return "\n".join([lines, f"farthest families, by their median error: {far}", *why(found)])


def worst(found: Sequence[Mapping[str, str]], count: int = 12) -> list[tuple[str, float, int]]:
    """Families by their median absolute error with the family held out, with the number of figures; the farthest."""
    errors: dict[str, list[float]] = {}
    for row in found:
        if row["held_out"] == "family":
            ratio = float(row["predicted_img_per_s"]) / float(row["measured_img_per_s"])
            errors.setdefault(row["family"], []).append(float(np.log(ratio)))
    far = sorted(errors.items(), key=lambda item: -float(np.median(np.abs(item[1]))))
    return [(family, float(np.median(values)), len(values)) for family, values in far[:count]]


def read(path: Path) -> list[Row]:
    """The rows that `main` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(found: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def chart(found: Sequence[Mapping[str, str]]) -> Any:
    """Predicted over measured images a second, a panel a card; families held out."""
    import altair as alt
    import pandas as pd

    alt.data_transformers.disable_max_rows()
    frame = pd.DataFrame([row for row in found if row["held_out"] == "family"])
    for name in ("measured_img_per_s", "predicted_img_per_s", "rare"):
        frame[name] = frame[name].astype(float)
    frame["rare kernels"] = [f"{rarity(share)}" for share in frame["rare"]]
    scale = alt.Scale(type="log", domain=[10, 200_000], clamp=True)
    panels = []
    for gpu, data in frame.groupby("gpu", sort=False):
        line = alt.Chart(pd.DataFrame({"x": [10, 200_000]})).mark_line(color="#999", strokeWidth=1).encode(
            x=alt.X("x:Q", scale=scale), y=alt.Y("x:Q", scale=scale)
        )  # fmt: skip
        points = alt.Chart(data, title=str(gpu), width=300, height=300).mark_circle(size=12, opacity=0.6).encode(
            x=alt.X("measured_img_per_s:Q", scale=scale, title="measured images/s"),
            y=alt.Y("predicted_img_per_s:Q", scale=scale, title="predicted images/s"),
            color=alt.Color("rare kernels:N", scale=alt.Scale(domain=["few", "some", "many"])),
        )  # fmt: skip
        panels.append(line + points)
    return alt.hconcat(*panels).properties(title="Predicted from operators alone, the model's family held out")


def main(folder: Path) -> int:
    """Writes tables and pictures; 1 where the predictions are farther off than is asked."""
    folder.mkdir(parents=True, exist_ok=True)
    return max(_main(folder, impl) for impl in IMPLS)


def _main(folder: Path, impl: str) -> int:
    found = rows(fitted_to(impl))
    for joined in judged_by(impl):
        found += judged(joined, calibration.fitted(impl))
    name = "throughput" if impl == "eager" else f"throughput-{impl}"
    path = folder / f"{name}.csv"
    write([{**row, "impl": impl} for row in found], path)
    errors = statistics(found)
    calibration.write_errors(errors, ERRORS[impl])
    print(f"wrote {path}, {ERRORS[impl]}")
    if drawing.plotting_missing():
        print(f"no picture drawn: {drawing.INSTALL}")
    else:
        print("wrote " + ", ".join(map(str, drawing.save(chart(found), folder / name))))
    print(told(errors))
    print("farthest families: " + ", ".join(f"{name} {error:+.0%} ({n})" for name, error, n in worst(found)))
    for line in [*(f"missed: {one}" for one in missed(errors)), *why(found)]:
        print(line)
    return int(bool(missed(errors)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/truth")))
