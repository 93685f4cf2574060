"""Rows of the audit as CSV: the header is the fields of `Row`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vitbench.errors import InputError


@dataclass(frozen=True)
class Row:
    """The audit's columns, in CSV order. `pass_` is the column "pass". Times in microseconds per launch.

    `loaded_bytes` and `stored_bytes` pass between the L2 cache and the multiprocessors, `bytes_ratio` is their sum over
    the bytes that cannot be avoided.
    """

    kernel: str
    case: str
    pass_: str
    arch: str
    dtype: str
    triton: str
    num_warps: int
    num_stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: float
    programs: int
    matrix_instruction: str
    narrowest_hot_load_bytes: int | None
    issue_slots_per_element: float
    sfu_per_element: float
    issue_us: float
    sfu_us: float
    matrix_us: float
    lsu_us: float
    fp32_us: float
    alu_us: float
    l2_us: float
    bytes_us: float
    modelled_us: float
    bound_by: str
    floor_us: float
    floor_share: float
    loaded_bytes: int
    stored_bytes: int
    bytes_ratio: float
    occupancy_limit: str
    exact: bool
    status: str
    reason: str

    @property
    def launch_id(self) -> str:
        """As `vitkernels.Launch.id`: op/case/pass/dtype."""
        return f"{self.kernel}/{self.case}/{self.pass_}/{self.dtype}"

    @property
    def key(self) -> str:
        return f"{self.launch_id}/{self.arch}"


def column(name: str) -> str:
    """The CSV column of a Row field ("pass" is a Python keyword, so its field is `pass_`)."""
    return name.rstrip("_")


COLUMNS = [column(field.name) for field in fields(Row)]


def record(row: Row) -> dict[str, Any]:
    """A row as it stands in a CSV: floats to five significant digits, what is unknown left empty."""
    values: dict[str, Any] = {}
    for field in fields(Row):
        value = getattr(row, field.name)
        if isinstance(value, float):
            value = float(f"{value:.5g}")
        values[column(field.name)] = "" if value is None else value
    return values


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write rows sorted by key, so that two files of the same kernels differ only where the kernels do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in sorted(rows, key=lambda r: r.key):
            writer.writerow(record(row))


def read_csv(path: Path) -> list[Row]:
    """The rows of a file that `write_csv` wrote.

    Raises: InputError when the file is missing or lacks a column.
    """
    if not path.exists():
        raise InputError(f"no audit file {path}; `vitbench audit --accept {path.parent}` writes one")
    with path.open(newline="") as handle:
        reader = csv.DictReader(handle)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
            raise InputError(f"{path} is not an audit of this version: it lacks the columns {', '.join(missing)}")
        return [_row(values, path) for values in reader]


def _row(values: dict[str, str], path: Path) -> Row:
    read: dict[str, Any] = {}
    for field in fields(Row):
        text = values[column(field.name)]
        kind = str(field.type)
        try:
            if kind == "bool":
                read[field.name] = text == "True"
            elif kind == "int":
                read[field.name] = int(text)
            elif kind == "int | None":
                read[field.name] = int(text) if text else None
            elif kind == "float":
                read[field.name] = float(text)
            else:
                read[field.name] = text
        except ValueError as problem:
            raise InputError(f"{path}: column {column(field.name)} holds {text!r}, expected {kind}") from problem
    return Row(**read)
