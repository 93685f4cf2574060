"""A small sweep and the folder of its run, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitbench.bench import sweep
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.cluster import folder as folders
from vitbench.cluster import shards
from vitbench.cluster.folder import Run, Shard
from vitbench.results import journal
from vitbench.results.row import Environment, Found, Row, Speed

QUICK = SweepOptions(min_time=0.01, max_time=0.02, passes=("latency",))
HERE = Environment(device_name="NVIDIA H200", device_uuid="GPU-1", torch="2.13.0", driver="600", threads=2)


def cases(count: int, models: Sequence[str] = ("resnet18", "cmt_s")) -> list[Case]:
    """In the order of a plan: models outside, batches inside."""
    each = -(-count // len(models))
    plain = [
        Case(model, "eager", "infer", "fp32", "nchw", (32, 32), batch, "cpu")
        for model in models
        for batch in range(1, each + 1)
    ]
    return plain[:count]


def run_of(folder: Path, planned: Sequence[Case], count: int, options: SweepOptions = QUICK) -> Run:
    divided = shards.divide(planned, count, shards.seconds(options))
    return folders.create(folder, divided, {case: n for n, case in enumerate(planned)}, options, "local")


def row(case: Case, environment: Environment = HERE, img_per_s: float = 1.0, status: str = "ok") -> Row:
    found = Found(status, speed=Speed(img_per_s=img_per_s))
    return sweep.row_of(case, found, environment, QUICK.setup, "2026-01-01T00:00:00+00:00")


def measured(shard: Shard, some: Sequence[Case], img_per_s: float = 1.0, **where: str) -> Path:
    """Adds rows of a shard, as its job on one device does."""
    environment = replace(HERE, **where)  # type: ignore[arg-type]
    rows = [row(case, environment, img_per_s) for case in some]
    path = shard.rows_on(rows[0])
    for one in rows:
        journal.append(path, one, [one.speed.img_per_s or 0.0])
    return path
