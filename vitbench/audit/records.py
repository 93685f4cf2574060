"""Rows of the audit as CSV: the header is the fields of `Row`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vitbench.audit.model import Row
from vitbench.errors import InputError


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
