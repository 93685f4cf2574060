"""timm's benchmark CSVs: write ours as theirs, read theirs as a baseline. Imports no torch.

The columns are those of `benchmark.py` in timm: step times in ms a batch, GMACs and million
activations at batch 1, parameters in millions. A model goes by timm's own name there: without our `timm:`,
with or without the tag of its weights.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitbench.catalog import parse_resolution
from vitbench.errors import InputError
from vitbench.measure.device import slug
from vitbench.names import file_name
from vitbench.results.journal import read
from vitbench.results.row import HEADERS, Row
from vitbench.selection import MODES

_PREFIX = "timm:"
INFER = (
    "model", "infer_img_size", "infer_samples_per_sec", "infer_step_time", "infer_batch_size",
    "param_count", "infer_gmacs", "infer_macts",
)  # fmt: skip
TRAIN = (
    "model", "train_samples_per_sec", "train_step_time", "train_batch_size", "train_img_size", "param_count",
)  # fmt: skip


def _as_timm(row: Row) -> dict[str, object]:
    height, width = parse_resolution(row.resolution)
    shared: dict[str, object] = {
        "model": row.model.removeprefix(_PREFIX),
        "param_count": round(row.counts.params_m or 0.0, 2),
    }
    measured = {
        "samples_per_sec": round(row.speed.img_per_s or 0.0, 2),
        "step_time": round(row.speed.latency_ms_p50 or 0.0, 3),
        "batch_size": row.batch,
        "img_size": height if height == width else row.resolution,
    }
    shared |= {f"{row.mode}_{name}": value for name, value in measured.items()}
    if row.mode == "infer":
        shared |= {"infer_gmacs": round(row.counts.gmacs or 0.0, 2), "infer_macts": round(row.counts.macts or 0.0, 2)}
    return shared


def export(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Writes the timed rows as timm CSVs, one file for each mode, dtype, layout and implementation.

    Rows that failed have no place in timm's format and stay in ours alone. An export is made anew
    from the rows each time, so a file of the same name is replaced.
    """
    files: dict[Path, list[Row]] = defaultdict(list)
    for row in rows:
        if row.status == "ok" and row.speed.img_per_s is not None and row.mode in MODES:
            version = "".join((row.environment.torch or "").split("+")[0].split(".")[:2])
            device = slug(row.environment.device_name)
            name = f"benchmark-{row.mode}-{row.dtype}-{row.layout}-pt{version}-{device}-{row.impl}"
            files[folder / f"{file_name(name, 200)}.csv"].append(row)
    for path, members in files.items():
        header = INFER if members[0].mode == "infer" else TRAIN
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, header, lineterminator="\n")
            writer.writeheader()
            writer.writerows(_as_timm(row) for row in members)
    return list(files)


@dataclass(frozen=True)
class Baseline:
    """Throughputs in images a second, or accuracies, to hold a sweep against, by what the file says about each.

    A vitbench CSV is matched case by case (without the device), a timm CSV by model, mode, resolution and batch,
    since it says no more. Accuracies (top-1 in %), which timm's `results-*.csv` have, go by model and resolution.
    """

    path: Path
    kind: str
    img_per_s: dict[tuple[object, ...], float]
    top1: dict[tuple[object, ...], float] = field(default_factory=dict)

    def of(self, row: Row) -> float | None:
        return self._found(self.img_per_s, row, _key(row, self.kind)[1:])

    def top1_of(self, row: Row) -> float | None:
        return self._found(self.top1, row, (row.resolution,))

    @staticmethod
    def _found(numbers: dict[tuple[object, ...], float], row: Row, rest: tuple[object, ...]) -> float | None:
        name = row.model.removeprefix(_PREFIX)
        found = ((known, *rest) for known in (row.model, name, name.partition(".")[0]))
        return next((numbers[key] for key in found if key in numbers), None)

    def unmatched(self, rows: Sequence[Row]) -> str:
        """One line on the measured rows that the file says nothing of; "" where there are none."""
        measured = [row for row in rows if row.speed.img_per_s is not None]
        alone = [row for row in measured if self.of(row) is None and self.top1_of(row) is None]
        if not alone:
            return ""
        row = alone[0]
        wanted = f"{row.model} {row.mode} at {row.resolution} px and batch {row.batch}"
        names = {row.model, (name := row.model.removeprefix(_PREFIX)), name.partition(".")[0]}
        others = [key for key in (*self.img_per_s, *self.top1) if key[0] in names]
        has = "; its lines are " + ", ".join(" ".join(map(str, key[1:])) for key in others[:3]) if others else ""
        lines = "line" if len(alone) == 1 else "lines"
        return f"{len(alone)} of {len(measured)} rows have no {lines} in {self.path}, such as {wanted}{has}"


def _key(row: Row, kind: str) -> tuple[object, ...]:
    key: tuple[object, ...] = (row.model, row.mode, row.resolution, row.batch)
    return key if kind == "timm" else (*key, row.impl, row.dtype, row.layout)


def read_baseline(path: Path) -> Baseline:
    """A baseline from a vitbench CSV or from one of timm's: `benchmark-*` of any year, for inference, training or
    both, or the accuracies of `results-*`.

    Raises: InputError when it is neither.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets mark UTF-8 by three bytes
            reader = csv.DictReader(file)
            header = tuple(reader.fieldnames or ())
            lines = {}
            for line in reader:
                if None in line:
                    raise InputError(f"baseline {path} line {reader.line_num} has more cells than the header")
                if any((text or "").strip() for text in line.values()):
                    lines[reader.line_num] = line
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"baseline {path} cannot be read ({error})") from error
    if header in HEADERS.values():
        own = {_key(row, "vitbench"): row.speed.img_per_s for row in read(path)}
        return Baseline(path, "vitbench", {key: speed for key, speed in own.items() if speed})
    modes = [mode for mode in ("infer", "train") if f"{mode}_samples_per_sec" in header]
    if not modes and not {"model", "img_size", "top1"} <= set(header):
        raise InputError(
            f"baseline {path} is neither a vitbench CSV nor a timm one (no column infer_samples_per_sec, "
            "train_samples_per_sec or top1)"
        )
    baseline = Baseline(path, "timm", {})
    for number, line in lines.items():
        try:
            for mode in modes:
                if speed := line[f"{mode}_samples_per_sec"]:  # a model that failed in one mode has no number there
                    size, batch = (int(float(line[f"{mode}_{name}"])) for name in ("img_size", "batch_size"))
                    _put(baseline.img_per_s, line["model"], (mode, str(size), batch), float(speed))
            if not modes:
                _put(baseline.top1, line["model"], (str(int(line["img_size"])),), float(line["top1"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"baseline {path} line {number} is damaged ({error})") from error
    return baseline


def _put(numbers: dict[tuple[object, ...], float], model: str, rest: tuple[object, ...], number: float) -> None:
    """By the full name, and by that without its tag for the first line that has it: timm's default, or its fastest."""
    if not 0 <= number < math.inf:
        raise ValueError(f"{number} is no rate and no accuracy")
    numbers[(model, *rest)] = number
    numbers.setdefault((model.partition(".")[0], *rest), number)
