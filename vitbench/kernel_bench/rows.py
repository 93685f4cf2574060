"""The CSV of kernel timings: its header is the fields of `KernelRow`; raw samples stand in a file beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitbench.errors import InputError
from vitbench.results import journal, lines
from vitbench.results.row import Environment
from vitbench.results.table import Table

STATUSES = ("ok", "unsupported", "incorrect", "oom", "error", "crashed")


@dataclass(slots=True)
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
TABLE = Table(KernelRow, "a CSV of kernel timings", number="{:.6g}".format, finite=True)


def read(path: Path) -> list[KernelRow]:
    """The rows of a file; none where it does not exist. A last line cut short by a kill is left out.

    Raises: InputError when it is another file or damaged.
    """
    return TABLE.read(path) if path.exists() else []


def append(path: Path, row: KernelRow, samples_us: Sequence[float] = ()) -> None:
    """Adds a row, and its samples to the file beside it; both are on disk on return.

    Raises: OSError when either cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples_us:
        record = {"id": row.id, "started_at": row.started_at, "us": [round(s, 4) for s in samples_us]}
        lines.append(journal.samples_path(path), json.dumps(record) + "\n")
    TABLE.append(path, [row])


def check_environment(path: Path, rows: Sequence[KernelRow], environment: Environment) -> None:
    """Raises: InputError when rows of a file were measured elsewhere or with other versions."""
    for row in rows:
        for name in ENVIRONMENT:
            old, new = TABLE.to_text(getattr(row, name)), TABLE.to_text(getattr(environment, name))
            if old != new:
                raise InputError(
                    f"{path} holds timings whose {name} is {old!r}, here it is {new!r}; give another --out"
                )
