"""The CSV of a sweep: append, read, lock. Imports no torch."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vitbench.errors import InputError
from vitbench.results import lines
from vitbench.results.row import HEADERS, SCHEMA, TABLE, TABLES, Row


def read(path: Path) -> list[Row]:
    """The rows of a CSV, None where its schema is too old to know a column; a last line cut short is left out.

    Raises: InputError when the file is missing or has another schema.
    """
    if not path.exists():
        raise InputError(f"results file {path} does not exist")
    header = lines.complete(path).partition("\n")[0].replace('"', "").strip()
    schema = next((number for number, known in HEADERS.items() if ",".join(known) == header), SCHEMA)
    rows = TABLES[schema].read(path)
    for number, row in enumerate(rows, start=2):
        if row.schema != schema:
            raise InputError(f"{path} line {number} has schema {row.schema}, its header is that of {schema}")
    return rows


def samples_path(path: Path) -> Path:
    """Where the raw samples of a CSV's rows are: one JSON object a line, beside it."""
    return path.with_suffix(".samples.jsonl")


def append(path: Path, row: Row, samples_ms: Sequence[float] = ()) -> None:
    """Adds a row, and its latency samples to the file beside it; both are on disk on return.

    Raises: OSError when either cannot be written, with both files as readable as before.
    """
    if samples_ms:
        record = {"case": row.case, "started_at": row.started_at, "latency_ms": [round(s, 6) for s in samples_ms]}
        lines.append(samples_path(path), json.dumps(record) + "\n")
    TABLE.append(path, [row])


def read_samples(path: Path) -> dict[str, list[float]]:
    """Latency samples in ms by case id, from the file beside the CSV `path`; the last record of a case counts.

    Raises: InputError when a line of it is no such record.
    """
    beside = samples_path(path)
    if not beside.exists():
        return {}
    samples: dict[str, list[float]] = {}
    for number, line in enumerate(lines.complete(beside, "samples of a vitbench CSV").splitlines(), start=1):
        try:
            record = json.loads(line)
            samples[str(record["case"])] = [float(sample) for sample in record["latency_ms"]]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{beside} line {number} is damaged; remove that line") from error
    return samples


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the CSV for one writer.

    Raises: InputError when the folder cannot be written or another run holds the file.
    """
    lock = path.resolve().with_name(f".{path.resolve().name}.lock")
    busy = f"another run is writing {path}; wait for it or give another --out"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("w")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another --out") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(busy) from error
        if not _is_at(handle.fileno(), lock):  # its holder took it away when it was done, since we opened it
            raise InputError(busy)
        try:
            if path.exists() and not os.access(path, os.W_OK):
                raise InputError(f"cannot write {path}: permission denied; give another --out")
            yield
        finally:
            lock.unlink(missing_ok=True)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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
