"""The row, whose fields are the CSV header. Imports no torch."""

from __future__ import annotations

import csv
import dataclasses
import io
import types
import typing
from dataclasses import dataclass, fields

SCHEMA = 2


STATUSES = ("ok", "oom", "incorrect", "unsupported", "timeout", "crashed", "error")


@dataclass
class Row:
    """One case and what came of it. None (empty in the CSV) means not measured; zero means zero.

    Units are in the names; results/README.md explains every column.
    """

    schema: int
    case: str
    status: str
    reason: str
    model: str
    family: str
    impl: str
    mode: str
    dtype: str
    layout: str
    device: str
    device_name: str
    resolution: str
    batch: int
    input: str
    weights: str
    params_m: float | None = None
    gmacs: float | None = None
    macts: float | None = None
    uncounted_ops: str | None = None
    top1: float | None = None
    coco_ap: float | None = None
    training_data: str | None = None
    source: str | None = None
    img_per_s: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_ci_low: float | None = None
    latency_ms_ci_high: float | None = None
    latency_ms_p95: float | None = None
    samples: int | None = None
    stop_reason: str | None = None
    compile_s: float | None = None
    static_mem_mib: float | None = None
    peak_mem_mib: float | None = None
    reserved_mem_mib: float | None = None
    predicted_mem_mib: float | None = None
    avg_power_w: float | None = None
    idle_power_w: float | None = None
    energy_j_per_img: float | None = None
    energy_net_j_per_img: float | None = None
    energy_source: str | None = None
    energy_ratio: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    valid: bool | None = None
    rel_err: float | None = None
    rel_err_limit: float | None = None
    mfu: float | None = None
    peak_tflops: float | None = None
    graphs: bool | None = None
    threads: int | None = None
    commit: str | None = None
    dirty: bool | None = None
    vitbench: str | None = None
    torch: str | None = None
    triton: str | None = None
    driver: str | None = None
    device_uuid: str | None = None
    started_at: str | None = None


HEADER = tuple(field.name for field in fields(Row))


#: The header of every schema that can be read; only the last is written.
HEADERS = {
    1: tuple(name for name in HEADER if name not in ("training_data", "source", "graphs")),
    SCHEMA: HEADER,
}


#: What must agree for rows to stand in one file: a change in any of these makes numbers incomparable.
ENVIRONMENT = (
    "schema", "device_name", "device_uuid", "driver", "torch", "triton", "vitbench", "commit", "dirty", "threads",
    "graphs", "input", "weights",
)  # fmt: skip


def _field_types() -> dict[str, type]:
    """The bare type of each field, without `| None`."""
    hints = typing.get_type_hints(Row)
    return {
        name: next(arg for arg in typing.get_args(hint) if arg is not type(None))
        if isinstance(hint, types.UnionType)
        else hint
        for name, hint in hints.items()
    }


_TYPES = _field_types()


_OPTIONAL = {field.name for field in fields(Row) if field.default is None}


def _to_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    return " ".join(str(value).split())  # one row is one line, whatever an error message holds


def from_text(name: str, text: str) -> object:
    if text == "" and name in _OPTIONAL:
        return None
    kind = _TYPES[name]
    return text == "true" if kind is bool else kind(text)


def format_row(row: Row) -> str:
    """The row as one CSV line with its newline."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(_to_text(getattr(row, name)) for name in HEADER)
    return line.getvalue()


HEADER_LINE = ",".join(HEADER) + "\n"


def environment_of(row: Row) -> dict[str, object]:
    return {name: getattr(row, name) for name in ENVIRONMENT}


def changes(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """What differs between two environments, as phrases."""
    return [
        f"{name} was {_to_text(old[name])!r}, is {_to_text(new[name])!r}"
        for name in old
        if _to_text(old[name]) != _to_text(new[name])
    ]


def as_dict(row: Row) -> dict[str, object]:
    return dataclasses.asdict(row)
