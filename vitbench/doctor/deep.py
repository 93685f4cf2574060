"""`vitbench doctor --deep`: one of each thing that vitbench does, tried on this machine in under a minute."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from vitbench.bench import predict, sweep
from vitbench.bench.build import Workload, set_precision, use_device
from vitbench.bench.check import Checker
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.doctor.check import LATE, Absent, Check, attempt
from vitbench.doctor.kernels import check_kernels
from vitbench.measure import device as devices
from vitbench.measure import latency, memory, power
from vitbench.measure.step import Step, make_step
from vitbench.results.row import Found, Row
from vitbench.trace.precision import TORCH_DTYPES

SECONDS = 60.0
#: Small, and of all kinds of layers: convolutions, depthwise ones, attention with a bias, products.
_MODEL, _SIZE, _BATCH = "cmt_ti", (64, 64), 2


class _Trial:
    """What is tried with one model, each thing by itself."""

    def __init__(self, device: str, seconds: float) -> None:
        self._seconds = seconds
        self.case = Case(_MODEL, "sdpa", "infer", "fp32", "nchw", _SIZE, _BATCH, device)
        self.device = torch.device(device)
        self._workload = Workload()

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "count", self._count
        yield "predict", self._predict
        yield "build", self._build
        yield "verify", self._verify
        yield "memory", self._memory
        yield "time", self._time
        yield "energy", self._energy
        yield "a row from a worker", self._row

    def _step(self) -> Step:
        case, dtype = self.case, TORCH_DTYPES[self.case.dtype]
        module = self._workload.module(case, case.impl, dtype)
        return make_step(module, self._workload.input(case, dtype), case.mode)

    def _count(self) -> str:
        found = predict.find_count(self.case.model, self.case.resolution)
        return f"{found.params_m:.3f} M parameters, {found.gmacs:.4f} GMACs"

    def _predict(self) -> str:
        found = [predict.find_memory(replace(self.case, mode=mode)) for mode in ("infer", "train")]
        return " and ".join(f"{mib:.1f} MiB" for mib in found) + " to infer and to train"

    def _build(self) -> str:
        set_precision(self.case)
        use_device(self.case.device)
        return f"{self.case.model} with {len(list(self._step().model.modules()))} modules"

    def _verify(self) -> str:
        found, dtype = Found(), TORCH_DTYPES[self.case.dtype]
        x = self._workload.input(self.case, dtype)
        model = self._workload.module(self.case, self.case.impl, dtype)
        Checker(self._workload).check(self.case, model, x, found)
        return f"error {found.verified.rel_err:.1e}, {found.verified.rel_err_limit:.1e} allowed"

    def _memory(self) -> str:
        return f"{memory.measure(self._step()).peak_mib:.1f} MiB"

    def _time(self) -> str:
        (timing,) = latency.measure([self._step()], self.device, 0.05, 1.0)
        low, high = timing.interval
        return f"{timing.p50:.3f} ms, between {low:.3f} and {high:.3f} ms"

    def _energy(self) -> str:
        source, why = power.find(self.case.device)
        if source is None:
            raise Absent(why)
        wait = (lambda: torch.cuda.synchronize(self.device)) if self.device.type == "cuda" else lambda: None
        found = power.measure(self._step(), source, wait, min_seconds=2.0)
        if found.joules <= 0:
            raise RuntimeError(f"{source.name} counted {found.joules:g} J in {found.seconds:.1f} s")
        return f"{found.watts:.1f} W, {found.per_call() / self.case.batch:.4g} J an image"

    def _row(self) -> str:
        options = SweepOptions(min_time=0.02, max_time=0.2, passes=("latency", "memory"), time_limit=2 * self._seconds)
        with tempfile.TemporaryDirectory() as folder:
            done = sweep.run(
                [self.case], Path(folder) / "a.csv", devices.environment(self.case.device), options, _Silent()
            )
        (row,) = done.rows
        if row.status != "ok":
            raise RuntimeError(f"{row.status}: {row.reason}")
        return f"{row.case}: {row.speed.img_per_s:.1f} img/s"


class _Silent:
    """Progress that nobody watches."""

    def phase(self, case: str | None, what: str) -> None: ...

    def row(self, row: Row, done: int, total: int, seconds_left: float | None) -> None: ...

    def note(self, text: str) -> None: ...

    def tick(self) -> None: ...


def checks(device: str, seconds: float = SECONDS) -> Iterator[Check]:
    """Each as soon as it is known, or LATE after so many seconds; kernels last, with at least half of the time."""
    start = time.monotonic()
    for what, call in _Trial(device, seconds).checks():
        left = start + seconds - time.monotonic()
        yield attempt(what, call) if left > 0 else Check(what, LATE, 0.0, f"not begun within {seconds:.0f} s")
    yield from check_kernels(device, max(seconds / 2, start + seconds - time.monotonic()))


__all__ = ["SECONDS", "checks"]
