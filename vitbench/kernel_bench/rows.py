"""The CSV of kernel timings: its header is the fields of `KernelRow`; raw samples stand in a file beside it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vitbench.errors import InputError
from vitbench.results import journal

STATUSES = ("ok", "unsupported", "incorrect", "oom", "error", "crashed")


@dataclass
class KernelRow:
    """One implementation of one case in one pass and dtype. None (empty in the CSV) means not measured.

    `pass_` is the column "pass". Times are of one call with a cold L2 cache; `graph_us` is the same replayed as a CUDA
    graph, without what launching costs. `floor_us` is the least time that the unavoidable bytes or matrix products of
    the case take on the card, where its rates are known; `floor_share` that over the time without launches.
    `impls` counts the implementations that the problem has, so that a file knows which problems are complete.
    `launches` names the audit's launches that the row runs (see `vitbench audit --validate`).
    """

    kernel: str
    case: str
    pass_: str
    dtype: str
    impl: str
    status: str
    reason: str
    launches: str
    impls: int
    median_us: float | None = None
    ci_low_us: float | None = None
    ci_high_us: float | None = None
    p95_us: float | None = None
    samples: int | None = None
    stop_reason: str | None = None
    graph_us: float | None = None
    floor_us: float | None = None
    floor_share: float | None = None
    speedup_over_eager: float | None = None
    rel_err: float | None = None
    rel_err_limit: float | None = None
    device: str | None = None
    device_name: str | None = None
    torch: str | None = None
    triton: str | None = None
    vitbench: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    driver: str | None = None
    threads: int | None = None
    started_at: str | None = None

    @property
    def id(self) -> str:
        """kernel/case/pass/dtype/impl: the key of a row in its file."""
        return f"{self.group}/{self.impl}"

    @property
    def group(self) -> str:
        """kernel/case/pass/dtype: what is measured in turns."""
        return f"{self.kernel}/{self.case}/{self.pass_}/{self.dtype}"


#: Fields that must be equal in all rows of a file: numbers of other machines or versions do not compare.
ENVIRONMENT = ("device_name", "torch", "triton", "vitbench", "commit", "dirty", "driver", "threads")
COLUMNS = tuple(field.name.rstrip("_") for field in fields(KernelRow))
_KINDS = {field.name: str(field.type).removesuffix(" | None") for field in fields(KernelRow)}
_OPTIONAL = {field.name for field in fields(KernelRow) if str(field.type).endswith(" | None")}


def _to_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())  # a row is one line, whatever an error message holds


def _from_text(name: str, text: str) -> Any:
    if not text and name in _OPTIONAL:
        return None
    kind = _KINDS[name]
    if kind == "bool":
        if text not in ("true", "false"):
            raise ValueError(f"{name} is {text!r}, expected true or false")
        return text == "true"
    if kind == "float" and not math.isfinite(float(text)):
        raise ValueError(f"{name} is {text}, expected a finite number")
    return {"str": str, "int": int, "float": float}[kind](text)


def to_line(row: KernelRow) -> str:
    """The row as one line of CSV."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(_to_text(getattr(row, field.name)) for field in fields(KernelRow))
    return line.getvalue()


def read(path: Path) -> list[KernelRow]:
    """The rows of a file; none where it does not exist. A last line cut short by a kill is left out.

    Raises: InputError when it is another file or damaged.
    """
    if not path.exists():
        return []
    text, _ = journal.complete_lines(path)
    lines = csv.reader(io.StringIO(text))
    header = tuple(next(lines, ()))
    if header and header != COLUMNS:
        odd = [name for name in (*header, *COLUMNS) if (name in header) != (name in COLUMNS)] or ["their order"]
        raise InputError(
            f"{path} is not a CSV of kernel timings (it differs in {', '.join(odd[:3])}); give another file"
        )
    rows = []
    for number, cells in enumerate(lines, start=2):
        try:
            pairs = zip(fields(KernelRow), cells, strict=True)
            rows.append(KernelRow(**{field.name: _from_text(field.name, cell) for field, cell in pairs}))
        except ValueError as problem:
            raise InputError(f"{path} line {number} is damaged ({problem}); repair or remove that line") from problem
    return rows


def append(path: Path, row: KernelRow, samples_us: Sequence[float] = ()) -> None:
    """Adds a row, and its samples to the file beside it; both are on disk on return.

    Raises: OSError when either cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples_us:
        record = {"id": row.id, "started_at": row.started_at, "us": [round(s, 4) for s in samples_us]}
        journal.append_line(journal.samples_path(path), json.dumps(record) + "\n")
    if not path.exists() or path.stat().st_size == 0:
        journal.append_line(path, ",".join(COLUMNS) + "\n")
    journal.append_line(path, to_line(row))


def check_environment(path: Path, rows: Sequence[KernelRow], environment: dict[str, object]) -> None:
    """Raises: InputError when rows of a file were measured elsewhere or with other versions."""
    for row in rows:
        for name in ENVIRONMENT:
            old, new = _to_text(getattr(row, name)), _to_text(environment[name])
            if old != new:
                raise InputError(
                    f"{path} holds timings whose {name} is {old!r}, here it is {new!r}; give another --out"
                )
