"""timm's benchmark CSVs: write ours as theirs, read theirs as a baseline. Imports no torch.

The columns are those of `benchmark.py` in timm: step times in ms a batch, GMACs and million
activations at batch 1, parameters in millions.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitbench.catalog import parse_resolution
from vitbench.errors import InputError
from vitbench.measure.device import slug
from vitbench.results.journal import read
from vitbench.results.row import HEADERS, Row

INFER = (
    "model", "infer_img_size", "infer_samples_per_sec", "infer_step_time", "infer_batch_size",
    "param_count", "infer_gmacs", "infer_macts",
)  # fmt: skip
TRAIN = (
    "model", "train_samples_per_sec", "train_step_time", "train_batch_size", "train_img_size", "param_count",
)  # fmt: skip


def _as_timm(row: Row) -> dict[str, object]:
    height, width = parse_resolution(row.resolution)
    shared: dict[str, object] = {"model": row.model, "param_count": round(row.params_m or 0.0, 2)}
    measured = {
        "samples_per_sec": round(row.img_per_s or 0.0, 2),
        "step_time": round(row.latency_ms_p50 or 0.0, 3),
        "batch_size": row.batch,
        "img_size": height if height == width else row.resolution,
    }
    shared |= {f"{row.mode}_{name}": value for name, value in measured.items()}
    if row.mode == "infer":
        shared |= {"infer_gmacs": round(row.gmacs or 0.0, 2), "infer_macts": round(row.macts or 0.0, 2)}
    return shared


def export(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes the timed rows as timm CSVs, one file for each mode, dtype, layout and implementation.

    Rows that failed have no place in timm's format and stay in ours alone. An export is made anew
    from the rows each time, so a file of the same name is replaced.
    """
    files: dict[Path, list[Row]] = defaultdict(list)
    for row in rows:
        if row.status == "ok" and row.img_per_s is not None:
            version = "".join((row.torch or "").split("+")[0].split(".")[:2])
            name = f"benchmark-{row.mode}-{row.dtype}-{row.layout}-pt{version}-{slug(row.device_name)}-{row.impl}.csv"
            files[folder / name].append(row)
    for path, members in files.items():
        header = INFER if members[0].mode == "infer" else TRAIN
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, header, lineterminator="\n")
            writer.writeheader()
            writer.writerows(_as_timm(row) for row in members)
    return list(files)


@dataclass(frozen=True)
class Baseline:
    """Throughputs in images a second to hold a sweep against, by what the file says about each.

    A vitbench CSV is matched case by case (without the device), a timm CSV by model, mode,
    resolution and batch, since it says no more.
    """

    path: Path
    kind: str
    img_per_s: dict[tuple[object, ...], float]

    def of(self, row: Row) -> float | None:
        return self.img_per_s.get(_key(row, self.kind))


def _key(row: Row, kind: str) -> tuple[object, ...]:
    key: tuple[object, ...] = (row.model, row.mode, row.resolution, row.batch)
    return key if kind == "timm" else (*key, row.impl, row.dtype, row.layout)


def read_baseline(path: Path) -> Baseline:
    """A baseline from a vitbench CSV or from one of timm's `benchmark-infer-*` / `benchmark-train-*`.

    Raises: InputError when it is neither.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            header = tuple(reader.fieldnames or ())
            lines = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"baseline {path} cannot be read ({error})") from error
    if header in HEADERS.values():
        rows = [row for row in read(path) if row.img_per_s is not None]
        return Baseline(path, "vitbench", {_key(row, "vitbench"): row.img_per_s for row in rows if row.img_per_s})
    mode = next((mode for mode in ("infer", "train") if f"{mode}_samples_per_sec" in header), None)
    if mode is None:
        raise InputError(f"baseline {path} is neither a vitbench CSV nor a timm one (no column infer_samples_per_sec)")
    speeds: dict[tuple[object, ...], float] = {}
    for number, line in enumerate(lines, start=2):
        try:
            speed = float(line[f"{mode}_samples_per_sec"])
            key = (line["model"].split(".")[0], mode, line[f"{mode}_img_size"], int(line[f"{mode}_batch_size"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"baseline {path} line {number} is damaged ({error})") from error
        speeds[key] = speed
    return Baseline(path, "timm", speeds)
