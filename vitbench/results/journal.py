"""The CSV of a sweep: append, read, lock. Imports no torch."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vitbench.errors import InputError
from vitbench.results.row import HEADER, HEADER_LINE, HEADERS, SCHEMA, Row, format_row, from_text


def complete_lines(path: Path) -> tuple[str, int]:
    """The text up to the last newline and its length in bytes: a line cut short by a kill is not a row."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    try:
        return data[:end].decode("utf-8-sig"), end
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a vitbench CSV: it is not text") from error


def read(path: Path) -> list[Row]:
    """The rows of a CSV, None where its schema is too old to know a column; a last line cut short is left out.

    Raises: InputError when the file is missing or has another schema.
    """
    if not path.exists():
        raise InputError(f"results file {path} does not exist")
    text, _ = complete_lines(path)
    if not text:
        return []
    lines = csv.reader(io.StringIO(text))
    header = tuple(next(lines))
    schema = next((number for number, known in HEADERS.items() if known == header), None)
    if schema is None:
        unknown = [name for name in header if name not in HEADER]
        missing = [name for name in HEADER if name not in header]
        detail = f"unknown columns {', '.join(unknown[:3])}" if unknown else f"no column {', '.join(missing[:3])}"
        raise InputError(f"{path} is not a vitbench CSV of schema {SCHEMA} ({detail}); give another file")
    rows = []
    for number, cells in enumerate(lines, start=2):
        if not any(cells):
            continue
        try:
            row = Row(**{name: from_text(name, cell) for name, cell in zip(header, cells, strict=True)})  # type: ignore[arg-type]
        except ValueError as error:
            raise InputError(f"{path} line {number} is damaged ({error}); repair or remove that line") from error
        if row.schema != schema:
            raise InputError(f"{path} line {number} has schema {row.schema}, its header is that of {schema}")
        rows.append(row)
    return rows


def samples_path(path: Path) -> Path:
    """Where the raw samples of a CSV's rows are: one JSON object a line, beside it."""
    return path.with_suffix(".samples.jsonl")


def append_line(path: Path, line: str) -> None:
    """Appends and syncs one line; a write that fails (a full disk) leaves the file as it was."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        end = complete_lines(path)[1]
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        data = line.encode()
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def append(path: Path, row: Row, samples_ms: Sequence[float] = ()) -> None:
    """Adds a row, and its latency samples to the file beside it; both are on disk on return.

    Raises: OSError when either cannot be written, with both files as readable as before.
    """
    if samples_ms:
        record = {"case": row.case, "started_at": row.started_at, "latency_ms": [round(s, 6) for s in samples_ms]}
        append_line(samples_path(path), json.dumps(record) + "\n")
    if not path.exists() or path.stat().st_size == 0:
        append_line(path, HEADER_LINE)
    append_line(path, format_row(row))


def read_samples(path: Path) -> dict[str, list[float]]:
    """Latency samples in ms by case id, from the file beside the CSV `path`; the last record of a case counts."""
    beside = samples_path(path)
    if not beside.exists():
        return {}
    records = (json.loads(line) for line in complete_lines(beside)[0].splitlines())
    return {record["case"]: record["latency_ms"] for record in records}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the CSV for one writer.

    Raises: InputError when the folder cannot be written or another run holds the file.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("w")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another --out") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is writing {path}; wait for it or give another --out") from error
        try:
            if path.exists() and not os.access(path, os.W_OK):
                raise InputError(f"cannot write {path}: permission denied; give another --out")
            yield
        finally:
            lock.unlink(missing_ok=True)


def set_aside(path: Path) -> Path | None:
    """Renames a CSV and its samples to the first free numbered name, so that nothing is overwritten."""
    if not path.exists():
        return None
    number = next(n for n in range(1, 10_000) if not path.with_suffix(f".{n}.csv").exists())
    aside = path.with_suffix(f".{number}.csv")
    path.rename(aside)
    if samples_path(path).exists():
        samples_path(path).rename(samples_path(aside))
    return aside
