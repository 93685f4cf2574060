"""Predictions beside every published figure: `python -m vitbench.memory.truth results/truth`.

Writes memory.csv (the figures with their sources, what is predicted, why a figure does not count) and a picture, and
prints how far the predictions are off. A figure counts where its source states a transformer's whole workload.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from vitbench import drawing
from vitbench.errors import InputError
from vitbench.memory.setting import MIB, workspace_bytes

PUBLISHED = Path(__file__).with_name("published.csv")
#: What is asked of the figures that count: the median and most of them so close, and none farther off than this.
MEDIAN, MOST, SHARE, WORST = 0.02, 0.03, 0.8, 0.12
_CONVOLUTIONAL = ("mobilenet", "shufflenet", "resnet")


@dataclass(frozen=True)
class Statistics:
    """Of predicted / measured: the median, the share within MOST of 1, the farthest from 1, and of how many."""

    median: float
    share: float
    worst: float
    count: int

    @property
    def good(self) -> bool:
        return abs(self.median - 1) <= MEDIAN and self.share >= SHARE and abs(self.worst - 1) <= WORST


def published() -> list[dict[str, str]]:
    """The figures, a row each: source, model, image, batch, mode, precision, optimizer, gpu, measured_mib, notes."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> list[dict[str, str]]:
    """The rows that `main` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def reason_of(row: Mapping[str, str]) -> str:
    """Why a figure does not count; "" where it does."""
    if row["model"].startswith(_CONVOLUTIONAL):
        benchmark = "cudnn.benchmark" in row["notes"]
        chosen = "chosen by cudnn.benchmark cannot be predicted" if benchmark else "are not predicted"
        return f"no transformer: workspaces of cuDNN's convolutions {chosen}"
    if "UNCERTAIN" in row["notes"]:
        return "its source leaves open: " + row["notes"].partition("UNCERTAIN: ")[2]
    return ""


def predict(row: Mapping[str, str]) -> float:
    """Predicted MiB of a row's workload, as `max_memory_allocated` counts in the steady state.

    Raises: NotRebuilt where there is no recipe; whatever the model raises on tensors without data.
    """
    from vitbench.memory.recipes import work_of  # imports torch
    from vitbench.memory.recording import exact
    from vitbench.memory.work import trace

    recording = exact(trace(work_of(row)))
    return recording.replay(1, workspace_bytes(80, row["mode"])).allocated / MIB


def statistics(rows: Sequence[Mapping[str, str]]) -> Statistics:
    """Of the rows that count.

    Raises: InputError where none counts.
    """
    ratios = [float(row["predicted_mib"]) / float(row["measured_mib"]) for row in rows if not row["reason"]]
    if not ratios:
        raise InputError("no figure with a prediction counts")
    close = sum(abs(ratio - 1) <= MOST for ratio in ratios) / len(ratios)
    return Statistics(median(ratios), close, max(ratios, key=lambda ratio: abs(ratio - 1)), len(ratios))


def told(rows: Sequence[Mapping[str, str]]) -> str:
    """How far the predictions are off, and how many figures do not count."""
    others = sum(bool(row["reason"]) for row in rows)
    found = statistics(rows)
    return (
        f"{found.count} published figures of transformers whose workload is stated; predicted / measured:\n"
        f"median {found.median:.3f}, {found.share:.0%} within {MOST:.0%}, farthest {found.worst:.3f}\n"
        f"{others} figures do not count; the column `reason` says why"
    )


def chart(rows: Sequence[Mapping[str, str]]) -> Any:
    """Predicted / measured of every figure that has a prediction; those that count above, the others below."""
    import altair as alt
    import pandas as pd

    frame = pd.DataFrame([dict(row) for row in rows if row["predicted_mib"]])
    frame["ratio"] = frame["predicted_mib"].astype(float) / frame["measured_mib"].astype(float)
    frame["name"] = [
        f"{row.model}, {row.image} x {row.batch}, {row.mode}, {row.precision}"
        for row in frame[["model", "image", "batch", "mode", "precision"]].itertuples(index=False)
    ]
    band = pd.DataFrame(
        [{"low": 1 - WORST, "high": 1 + WORST, "w": WORST}, {"low": 1 - MOST, "high": 1 + MOST, "w": MOST}]
    )
    panels = []
    for counts, title in ((True, "workload stated"), (False, "workload partly guessed, or convolutions")):
        data = frame[(frame["reason"] == "") == counts]
        if data.empty:
            continue
        rectangles = alt.Chart(band).mark_rect(opacity=0.15, color="#4c78a8").encode(x="low:Q", x2="high:Q")
        points = (
            alt.Chart(data, title=title, width=420, height=alt.Step(13))
            .mark_point(filled=True, size=55)
            .encode(
                x=alt.X(
                    "ratio:Q",
                    scale=alt.Scale(zero=False),
                    axis=alt.Axis(tickCount=8),
                    title="predicted / measured peak memory",
                ),
                y=alt.Y("name:N", sort="-x", title=None, axis=alt.Axis(labelLimit=430, grid=True)),
                color=alt.Color("mode:N", title=None),
                tooltip=["source:N", "measured_mib:Q", "predicted_mib:Q"],
            )
        )
        panels.append(rectangles + points)
    note = f"bands: within {MOST:.0%} and {WORST:.0%}"
    return alt.vconcat(*panels).properties(title=f"Predicted without a GPU, beside published figures ({note})")


def main(folder: Path) -> int:
    """Writes table and picture; 1 where the predictions are farther off than is asked."""
    rows = []
    for row in published():
        reason = reason_of(row)
        try:
            predicted = f"{predict(row):.1f}"
        except Exception as error:
            predicted, reason = "", f"not rebuilt: {str(error).splitlines()[0]}"
        rows.append({**row, "predicted_mib": predicted, "reason": reason})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "memory.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")
    if drawing.plotting_missing():
        print(f"no picture drawn: {drawing.INSTALL}")
    else:
        print("wrote " + ", ".join(map(str, drawing.save(chart(rows), folder / "memory"))))
    print(told(rows))
    return 0 if statistics(rows).good else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/truth")))
