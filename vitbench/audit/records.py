"""Rows of the audit as CSV: the header is the fields of `Row`, floats have five significant digits."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from vitbench.errors import InputError
from vitbench.results.table import Table


@dataclass(frozen=True)
class Stalls:
    """Of all cycles of all warps, the shares spent in each state of Nsight Compute's, `product` (waiting for a matrix
    product or a bulk copy) and `start` (a branch's target, or a program's first instruction) besides. They are None in
    rows of files that do not have them."""

    stall_selected: float | None = None
    stall_wait: float | None = None
    stall_long_scoreboard: float | None = None
    stall_short_scoreboard: float | None = None
    stall_barrier: float | None = None
    stall_math_pipe_throttle: float | None = None
    stall_mio_throttle: float | None = None
    stall_not_selected: float | None = None
    stall_product: float | None = None
    stall_branch_or_start: float | None = None


@dataclass(frozen=True)
class Row:
    """The audit's columns, in CSV order. `pass_` is the column "pass". Times in microseconds per launch.

    `modelled_us` is simulated, `modelled_low_us` and `modelled_high_us` with latencies 25 % shorter and longer; what it
    costs to launch is apart, `launch_us`. `overlapped_us` knows no latency: the 4-norm of the busy times before it. In
    rows of a file from before there was a simulation, modelled and overlapped time are one, and the other three None.
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
    overlapped_us: float
    modelled_us: float
    modelled_low_us: float | None
    modelled_high_us: float | None
    launch_us: float | None
    bound_by: str
    floor_us: float
    floor_share: float
    loaded_bytes: int
    stored_bytes: int
    bytes_ratio: float
    occupancy_limit: str
    exact: bool
    card: str
    status: str
    reason: str
    stalls: Stalls = Stalls()

    @property
    def launch_id(self) -> str:
        """As `vitkernels.Launch.id`: op/case/pass/dtype."""
        return f"{self.kernel}/{self.case}/{self.pass_}/{self.dtype}"

    @property
    def key(self) -> str:
        return f"{self.launch_id}/{self.arch}"


def _five_digits(value: float) -> str:
    return str(float(f"{value:.5g}"))


def _table(names: Sequence[str] | None = None) -> Table[Row]:
    return Table(Row, "an audit of this version", names, _five_digits, ("False", "True"))


TABLE = _table()
COLUMNS = TABLE.header
STALLS = tuple(field.name for field in fields(Stalls))
_SIMULATED = ("overlapped_us", "modelled_low_us", "modelled_high_us", "launch_us", "card")
_WITHOUT_STALLS = tuple(name for name in COLUMNS if name not in STALLS)
_OLDER = tuple(name for name in _WITHOUT_STALLS if name not in _SIMULATED)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write rows sorted by key, so that two files of the same kernels differ only where the kernels do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write(path, sorted(rows, key=lambda row: row.key))


def read_csv(path: Path) -> list[Row]:
    """The rows of a file that `write_csv` wrote.

    Raises: InputError when the file is missing or of another version.
    """
    if not path.exists():
        raise InputError(f"no audit file {path}; `vitbench audit --accept {path.parent}` writes one")
    with path.open(encoding="utf-8") as file:
        header = tuple(file.readline().strip().split(","))
    if header == _WITHOUT_STALLS:
        return _table(_WITHOUT_STALLS).read(path)
    return _read_older(path) if header == _OLDER else TABLE.read(path)


def _read_older(path: Path) -> list[Row]:
    """Of a file from before there was a simulation."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = [*csv.reader(file)][1:]
    found = []
    for cells in lines:
        given = dict(zip(_OLDER, cells, strict=True))
        given |= {"overlapped_us": given["modelled_us"], "card": ""}
        found.append(TABLE.parse([given.get(name, "") for name in COLUMNS]))
    return found
