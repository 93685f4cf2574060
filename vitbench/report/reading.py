"""Result files as frames, whatever is wrong with them: what cannot be read is left out and said. Imports no torch.

Kinds of rows are told apart by a file's columns. A frame has every column that its kind knows, empty where a file lacks
it, so that nothing further up asks whether a column is there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from vitbench import catalog
from vitbench.errors import InputError
from vitbench.report.kinds import ALSO, KINDS, MADE, Kind
from vitbench.results import lines
from vitbench.results.row import ENVIRONMENT


@dataclass
class Results:
    """What was read: a frame for each kind, whose index numbers the rows of all, and what is to be said about it.

    `environments`: of each file that says so, its columns ENVIRONMENT with more than one value joined.
    """

    frames: dict[str, pd.DataFrame]
    notes: list[str] = field(default_factory=list)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def machines(self) -> list[tuple[dict[str, str], list[str]]]:
        """Each environment that names its machine, with the files that have it."""
        found: list[tuple[dict[str, str], list[str]]] = []
        for name, values in self.environments.items():
            if "device_name" not in values:
                continue
            same = next((files for known, files in found if known == values), None)
            if same is None:
                found.append((values, [name]))
            else:
                same.append(name)
        return found

    def ok(self, kind: str) -> pd.DataFrame:
        """The rows of a kind that have numbers to draw."""
        frame = self.frames[kind]
        return frame[frame["status"].isin(["ok", ""])] if "status" in frame else frame


def read(paths: Sequence[Path]) -> Results:
    """The rows of every file.

    Raises: InputError where a file is missing, or none has a row.
    """
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in KINDS}
    results = Results({}, files=list(paths))
    names = _short(paths)
    for path in paths:
        if not path.is_file():
            raise InputError(f"results file {path} does not exist")
        try:
            kind, frame = _file(path, results.notes)
        except InputError as error:
            results.notes.append(f"{error}; left out")
            continue
        frame["file"] = names[path]
        found[kind.name].append(frame)
        if environment := _environment(frame):
            results.environments[names[path]] = environment
    if not any(len(frame) for frames in found.values() for frame in frames):
        raise InputError("no row to report: " + ("; ".join(results.notes) or "the files are empty"))
    return _numbered(found, results)


def of_rows(cells: Iterable[Mapping[str, str]]) -> Results:
    """The same of a sweep's rows that are at hand, as they stand in their file."""
    frame = _typed(KINDS["sweep"], pd.DataFrame(list(cells), dtype=str), "", [])
    frame["file"] = ""
    results = Results({}, environments={"": _environment(frame)})
    return _numbered({name: [frame] if name == "sweep" else [] for name in KINDS}, results)


def _short(paths: Sequence[Path]) -> dict[Path, str]:
    """Files by the shortest ends of their paths that tell them apart."""
    for depth in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        ends = {path: "/".join(path.parts[-depth:]) for path in paths}
        if len(set(ends.values())) == len(ends):
            return ends
    return {path: str(path) for path in paths}


def _file(path: Path, notes: list[str]) -> tuple[Kind, pd.DataFrame]:
    try:
        whole = lines.complete(path)
        if path.read_bytes()[-1:] not in (b"", b"\n"):
            notes.append(f"{path}: the last line is cut short; left out")
        header, *body = csv.reader(io.StringIO(whole)) if whole.strip() else [[]]
    except csv.Error as error:
        raise InputError(f"{path} is no CSV ({error})") from error
    fitting = [kind for kind in KINDS.values() if kind.known_by <= set(header)]
    kind = max(fitting, key=lambda kind: len(kind.known_by), default=None)
    if kind is None:
        raise InputError(
            f"{path} is no file of results that is known by its columns ({', '.join(header[:4]) or 'none'})"
        )
    body = [cells for cells in body if any(cells)]
    damaged = sum(len(cells) != len(header) for cells in body)
    if damaged:
        lines_are = "line has" if damaged == 1 else "lines have"
        notes.append(f"{path}: {damaged} {lines_are} not {len(header)} cells as the header has; left out")
    if len(set(header)) < len(header):
        raise InputError(f"{path} names a column twice")
    whole_lines = [cells for cells in body if len(cells) == len(header)]
    return kind, _typed(kind, pd.DataFrame(whole_lines, columns=header, dtype=str), str(path), notes)


def _typed(kind: Kind, frame: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    """Every column of the kind, numbers as numbers; what is none is missing, and said."""
    if name:
        if missing := [column for column in kind.shown if column not in frame and column not in MADE]:
            notes.append(f"{name} lacks {_listed(missing)}: empty here")
        if unknown := [str(column) for column in frame if column not in (*kind.columns, *ALSO.get(kind.name, ()))]:
            notes.append(f"{name} has columns that are not known: {_listed(unknown)}; not shown")
    typed: dict[str, pd.Series] = {}
    for column in kind.columns:
        cells = frame[column].fillna("") if column in frame else pd.Series("", frame.index, dtype=str)
        if column in kind.numbers:
            numbers = pd.to_numeric(cells, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
            if broken := int((numbers.isna() & (cells != "")).sum()):
                cells_are = "cell is" if broken == 1 else "cells are"
                notes.append(f"{name}: {broken} {cells_are} no number in {column}; empty here")
            typed[column] = numbers
        else:
            typed[column] = cells
    return pd.DataFrame(typed)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def _environment(frame: pd.DataFrame) -> dict[str, str]:
    """What all rows of a file share, or each value of a column that varies."""
    names = [name for name in ENVIRONMENT if name in frame and name != "schema"]
    values = {
        name: [
            f"{value:g}" if isinstance(value, float) else value for value in frame[name].unique() if not _empty(value)
        ]
        for name in names
    }
    return {name: " | ".join(texts) for name, texts in values.items() if texts}


def _empty(value: object) -> bool:
    return value == "" or value != value  # NaN is not itself


def _numbered(found: Mapping[str, Sequence[pd.DataFrame]], results: Results) -> Results:
    start = 0
    for name, kind in KINDS.items():
        frames = [_models()] if name == "models" else [frame for frame in found[name] if len(frame)]
        frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*kind.columns, "file"])
        frame.index = pd.RangeIndex(start, start + len(frame))
        start += len(frame)
        if name == "sweep":
            frame["speedup"] = _speedup(frame)
            for column in ("training_data", "source"):
                found_there = frame["model"].map({name: getattr(e, column) for name, e in catalog.published().items()})
                frame[column] = frame[column].where(frame[column] != "", found_there.fillna(""))
        results.frames[name] = frame
    machines = sorted({*results.frames["sweep"]["device_name"], *results.frames["kernels"]["device_name"]} - {""})
    if len(machines) > 1:
        results.notes.append(f"{len(machines)} machines: {', '.join(machines)}. Curves of each are apart")
    return results


def _speedup(frame: pd.DataFrame) -> pd.Series:
    """Images a second over eager's of the same case in the same file; empty for eager."""
    keys = ["file", "device_name", "model", "mode", "dtype", "layout", "resolution", "batch"]
    ok = frame[frame["status"].isin(["ok", ""]) & frame["img_per_s"].notna()]
    eager = ok[ok["impl"] == "eager"].drop_duplicates(keys, keep="last").set_index(keys)["img_per_s"]
    others = ok[ok["impl"] != "eager"]
    base = eager.reindex(pd.MultiIndex.from_frame(others[keys])).to_numpy()
    return (others["img_per_s"] / base).reindex(frame.index)


RECIPES = Path(__file__).parent / "recipes.csv"


def _models() -> pd.DataFrame:
    """The catalog, and for each published recipe of pre-training what it computes: 6 FLOPs for each multiply-accumulate
    of a forward pass (2, and twice as many backward), for each image of each epoch."""
    known = catalog.published()
    records = [
        {
            "model": entry.model, "family": entry.family, "top1": entry.top1, "coco_ap": entry.coco_ap,
            "params_m": entry.params_m, "gmacs": entry.gmacs, "training_data": entry.training_data,
            "resolution": catalog.format_resolution(entry.resolution) if entry.resolution else "",
            "source": entry.source,
        }
        for entry in known.values()
    ]  # fmt: skip
    with RECIPES.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            entry = known[line["model"]]
            images, epochs = float(line["images_m"]), float(line["epochs"])
            assert entry.gmacs is not None
            records.append(
                {
                    "model": entry.model, "family": entry.family, "params_m": entry.params_m, "gmacs": entry.gmacs,
                    "resolution": catalog.format_resolution(entry.resolution) if entry.resolution else "",
                    "top1": float(line["top1"]) if line["top1"] else entry.top1, "images_m": images, "epochs": epochs,
                    "training_data": line["data"], "source": line["source"],
                    "exaflops": 6 * entry.gmacs * 1e9 * images * 1e6 * epochs / 1e18,
                }
            )  # fmt: skip
    frame = pd.DataFrame(records, columns=[*KINDS["models"].columns])
    return frame.assign(file="catalog")


__all__ = ["RECIPES", "Results", "of_rows", "read"]
