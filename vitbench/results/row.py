"""The row of a case, whose fields are the CSV header. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitbench.results.table import Table, columns_of

SCHEMA = 4
#: What models are fed and made of where nothing else is given.
NOISE, RANDOM = "noise, seed 0", "random, seed 0"
STATUSES = ("ok", "oom", "incorrect", "unsupported", "timeout", "crashed", "error")


@dataclass(slots=True)
class Counts:
    """Of one image, before anything runs: parameters in 10^6, multiply-accumulates in 10^9, activations in 10^6."""

    params_m: float | None = None
    gmacs: float | None = None
    macts: float | None = None
    uncounted_ops: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """What is published about the model: accuracies in percent, the data it was trained on, and where it says so."""

    top1: float | None = None
    coco_ap: float | None = None
    training_data: str | None = None
    source: str | None = None


@dataclass(slots=True)
class Speed:
    """How long a step takes, and how fast it was predicted to be without running it."""

    img_per_s: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_ci_low: float | None = None
    latency_ms_ci_high: float | None = None
    latency_ms_p95: float | None = None
    samples: int | None = None
    stop_reason: str | None = None
    predicted_img_per_s: float | None = None


@dataclass(slots=True)
class Memory:
    """What a step needs on the device, measured, and predicted without running it."""

    static_mem_mib: float | None = None
    peak_mem_mib: float | None = None
    reserved_mem_mib: float | None = None
    predicted_mem_mib: float | None = None


@dataclass(slots=True)
class Energy:
    """What steps draw, and the same less what an idle device draws."""

    avg_power_w: float | None = None
    idle_power_w: float | None = None
    energy_j_per_img: float | None = None
    energy_net_j_per_img: float | None = None
    energy_source: str | None = None
    energy_ratio: float | None = None


@dataclass(slots=True)
class Health:
    """What the device did while steps were timed; `valid` is whether their times count."""

    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    valid: bool | None = None


@dataclass(slots=True)
class Verified:
    """The error against eager, and how large it may be."""

    rel_err: float | None = None
    rel_err_limit: float | None = None


@dataclass(slots=True)
class Utilisation:
    """The share of the device's own matrix products per second that the model's are."""

    mfu: float | None = None
    peak_tflops: float | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What all cases of a sweep are fed, how their steps run, and where their models are not the published ones."""

    input: str = NOISE
    weights: str = RANDOM
    graphs: bool | None = None
    num_classes: int | None = None
    drop_path: float | None = None
    reparam: bool | None = None
    checkpointing: bool | None = None
    compile_mode: str | None = None
    config: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine, the software and the code; `measure.device.environment` finds it out."""

    device_name: str
    threads: int | None = None
    commit: str | None = None
    dirty: bool | None = None
    vitbench: str | None = None
    torch: str | None = None
    triton: str | None = None
    driver: str | None = None
    device_uuid: str | None = None


@dataclass(slots=True)
class Found:
    """What a worker finds out about a case, part by part; `reason` also holds what there is to say of an ok case."""

    status: str = "ok"
    reason: str = ""
    counts: Counts = field(default_factory=Counts)
    speed: Speed = field(default_factory=Speed)
    compile_s: float | None = None
    memory: Memory = field(default_factory=Memory)
    energy: Energy = field(default_factory=Energy)
    health: Health = field(default_factory=Health)
    verified: Verified = field(default_factory=Verified)
    utilisation: Utilisation = field(default_factory=Utilisation)

    def note(self, text: str) -> None:
        """Adds to what it says besides its numbers."""
        self.reason = "; ".join(filter(None, (self.reason, text)))


@dataclass(slots=True, kw_only=True)
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
    resolution: str
    batch: int
    counts: Counts = field(default_factory=Counts)
    published: Published = field(default_factory=Published)
    speed: Speed = field(default_factory=Speed)
    compile_s: float | None = None
    memory: Memory = field(default_factory=Memory)
    energy: Energy = field(default_factory=Energy)
    health: Health = field(default_factory=Health)
    verified: Verified = field(default_factory=Verified)
    utilisation: Utilisation = field(default_factory=Utilisation)
    setup: Setup = field(default_factory=Setup)
    environment: Environment
    started_at: str | None = None


#: What a row is about stands first, wherever it is kept; then the fields in their order.
_FIRST = (
    "schema", "case", "status", "reason", "model", "family", "impl", "mode", "dtype", "layout", "device", "device_name",
    "resolution", "batch", "input", "weights",
)  # fmt: skip
HEADER = (*_FIRST, *(column.name for column in columns_of(Row) if column.name not in _FIRST))


#: The header of every schema that can be read; only the last is written.
_SINCE_2 = ("training_data", "source", "graphs")
_SINCE_3 = ("num_classes", "drop_path", "reparam", "checkpointing", "compile_mode", "config")
_SINCE_4 = ("predicted_img_per_s",)
HEADERS = {
    1: tuple(name for name in HEADER if name not in (*_SINCE_2, *_SINCE_3, *_SINCE_4)),
    2: tuple(name for name in HEADER if name not in (*_SINCE_3, *_SINCE_4)),
    3: tuple(name for name in HEADER if name not in _SINCE_4),
    SCHEMA: HEADER,
}
_WHAT = f"a vitbench CSV of schema {SCHEMA}"
TABLES = {schema: Table(Row, _WHAT, names) for schema, names in HEADERS.items()}
TABLE = TABLES[SCHEMA]


#: What must agree for rows to stand in one file: a change in any of these makes numbers incomparable.
ENVIRONMENT = (
    "schema", "device_name", "device_uuid", "driver", "torch", "triton", "vitbench", "commit", "dirty", "threads",
    "graphs", "input", "weights", *_SINCE_3,
)  # fmt: skip


def environment_of(row: Row) -> dict[str, str]:
    """The columns ENVIRONMENT of a row, as they stand in its file."""
    cells = TABLE.texts(row)
    return {name: cells[name] for name in ENVIRONMENT}


def changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """What differs between two environments, as phrases."""
    return [f"{name} was {old[name]!r}, is {new[name]!r}" for name in old if old[name] != new[name]]


def as_dict(row: Row) -> dict[str, object]:
    """A row's values by column."""
    return TABLE.values(row)
