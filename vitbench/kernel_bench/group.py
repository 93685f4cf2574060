"""One problem: every implementation verified, those that are right timed in turns, and a row for each."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from vitbench.audit.model.chips import card_named
from vitbench.errors import Unsupported
from vitbench.kernel_bench import timing
from vitbench.kernel_bench.cases import Planned
from vitbench.kernel_bench.problem import DTYPES, Impl, Problem, outcome, reference_outcome
from vitbench.kernel_bench.rows import KernelRow
from vitbench.measure import device as devices
from vitbench.measure.latency import Latency
from vitbench.results.row import Environment
from vitbench.verify import judge
from vitbench.verify.outcome import Outcome, relative_error

T = TypeVar("T")


@dataclass
class Contender:
    """An implementation on its way to a row; `step` is there while nothing speaks against timing it."""

    impl: Impl
    status: str = "ok"
    reason: str = ""
    step: Callable[[], tuple[Tensor, ...]] | None = None
    error: float | None = None
    limit: float | None = None
    latency: Latency | None = None
    graph_us: float | None = None


class DeviceLost(Exception):
    """The accelerator's context is broken; only a new process can go on. Carries the rows that are known."""

    def __init__(self, rows: list[KernelRow]) -> None:
        super().__init__("the device failed and this process cannot use it any more")
        self.rows = rows


def floor_us(work: Sequence[tuple[int, int]], device_name: str) -> float | None:
    """The least time for (FLOPs, bytes) of each pass on a card whose rates are known, else None.

    Products are charged at the bf16 rate of the matrix unit: wider types cannot be faster.
    """
    chip = card_named(device_name)
    if chip is None:
        return None
    return sum(max(flops / chip.matrix_flops_per_us, size / chip.dram_bytes_per_us) for flops, size in work)


def failure(problem: BaseException, notes: Sequence[str]) -> tuple[str, str]:
    """(status, one-line reason) of an exception; `notes` are the warnings that came with it.

    "unsupported" only where a peer refused by name: whatever else a rival raises is a failure to look into.
    """
    text = " ".join(str(problem).split()) or type(problem).__name__
    if isinstance(problem, torch.OutOfMemoryError):
        return "oom", text[:300]
    if not isinstance(problem, Unsupported):
        return "error", text[:300]
    # SDPA says why in warnings: a heading for each backend, then its reason; the others are off because one is pinned.
    told = [" ".join(note.partition("(Triggered")[0].split()) for note in notes]
    why = next((note for note in told if not note.endswith("because:") and "disabled" not in note), "")
    return "unsupported", f"{text[:300]} {why[:200]}".strip()


def _check_device(device: torch.device) -> None:
    """Raises: DeviceLost when the device answers no more."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception as problem:
            raise DeviceLost([]) from problem


def _attempt(who: Sequence[Contender], call: Callable[[], T], device: torch.device, what: str = "") -> T | None:
    """The result of `call`; where it raises, None, and those concerned are out, with `what` before the reason.

    Raises: DeviceLost when the device answers no more.
    """
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            result = call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return result
        except Exception as problem:  # every failure of a peer is a row
            status, reason = failure(problem, [str(note.message) for note in notes])
    try:
        _check_device(device)
    except DeviceLost:
        status = "crashed"
        raise
    finally:
        for contender in who:
            contender.status, contender.reason, contender.step = status, what + reason, None
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what ran out of memory leaves it to the next
    return None


def _verify(contenders: Sequence[Contender], problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
    """Holds each against fp64, allowed twice the error that eager has in the problem's dtype."""
    open_ = [c for c in contenders if c.status == "ok"]
    eager = next(impl for impl in problem.impls if impl.name == "eager")

    def yardstick() -> tuple[Outcome, float]:
        want = reference_outcome(problem)
        return want, judge.limit(relative_error(outcome(problem.step(eager)()), want), dtype)

    found = _attempt(open_, yardstick, device, "nothing to verify against: ")
    if found is None:
        return
    want, limit = found
    for contender in open_:
        contender.step = _attempt([contender], partial(problem.step, contender.impl), device)
        results = contender.step and _attempt([contender], contender.step, device)
        if results is None:
            continue
        got = outcome(results)
        contender.limit = limit
        if not got.finite():
            contender.status, contender.reason, contender.step = "incorrect", "it gives NaN or infinity", None
            continue
        contender.error = relative_error(got, want)
        if contender.error > limit:
            contender.status, contender.step = "incorrect", None
            contender.reason = f"error {contender.error:.2g} against fp64, {limit:.2g} allowed"


def verified(problem: Problem, impl: Impl, dtype: str, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """The step of an implementation that has been found right.

    Raises: AssertionError when it fails or is wrong, saying how.
    """
    step = _verified(problem, impl, dtype, device).step
    assert step is not None
    return step


def error_of(problem: Problem, impl: Impl, dtype: str, device: str) -> tuple[float, float]:
    """The error of an implementation against fp64, and how large it may be.

    Raises: AssertionError as `verified`.
    """
    contender = _verified(problem, impl, dtype, device)
    assert contender.error is not None
    assert contender.limit is not None
    return contender.error, contender.limit


def _verified(problem: Problem, impl: Impl, dtype: str, device: str) -> Contender:
    contender = Contender(impl)
    _verify([contender], problem, DTYPES[dtype], torch.device(device))
    if contender.step is None:
        raise AssertionError(f"{impl.name} is {contender.status}: {contender.reason}")
    return contender


def _time(contenders: Sequence[Contender], device: torch.device, max_seconds: float, deadline: float) -> None:
    running = [c for c in contenders if c.step is not None]
    steps = [c.step for c in running if c.step is not None]
    if not steps:
        return
    max_seconds = min(max_seconds, max(0.0, deadline - time.monotonic()) / len(steps))
    timed = _attempt(running, lambda: timing.latencies(steps, device, max_seconds), device, "timing failed: ")
    if timed is None:
        return
    replayed = timing.graph_us(steps, device, max_seconds)
    try:
        _check_device(device)
    except DeviceLost:
        for contender in running:
            contender.status, contender.reason = "crashed", "replaying one of these as a CUDA graph broke the device"
        raise
    held_down = devices.clocks(str(device)).throttled
    for contender, latency, (graph, why_not) in zip(running, timed, replayed, strict=True):
        contender.latency, contender.graph_us = latency, graph
        notes = [why_not, "the clock was held down by heat or power" if held_down else ""]
        contender.reason = "; ".join(note for note in notes if note)[:300]


def measure(
    planned: Planned,
    device: str,
    environment: Environment,
    skip: Collection[str] = (),
    eager_us: float | None = None,
    max_seconds: float = timing.MAX_SECONDS,
    deadline: float = math.inf,
) -> list[tuple[KernelRow, list[float]]]:
    """A row and its samples in us for every implementation of a problem whose name is not in `skip`.

    Args:
        eager_us: eager's time from earlier, where it is skipped.
        max_seconds: that timing one implementation may take.
        deadline: on the clock of time.monotonic; the timings are shortened to end by it.

    Raises: DeviceLost when a failure broke the device; the rows it carries say which implementation did.
    """
    where = torch.device(device)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    problem = planned.build()
    contenders = []
    for impl in problem.impls:
        if impl.name in skip:
            continue
        refused = ("unsupported", impl.unsupported) if impl.unsupported else ("ok", "")
        contenders.append(Contender(impl, *refused))

    def row(contender: Contender) -> KernelRow:
        return _row(planned, contender, len(problem.impls), device, started, environment)

    try:
        _verify(contenders, problem, DTYPES[planned.dtype], where)
        _time(contenders, where, max_seconds, deadline)
    except DeviceLost as lost:
        raise DeviceLost([row(c) for c in contenders if c.status == "crashed"]) from lost
    eager_us = next((c.latency.p50 * 1e3 for c in contenders if c.latency and c.impl.name == "eager"), eager_us)
    found = []
    for c in contenders:
        made = row(c)
        if c.latency is not None:
            _fill(made, c.latency, c.graph_us, floor_us(problem.work, environment.device_name), eager_us)
        found.append((made, [1e3 * ms for ms in c.latency.samples_ms] if c.latency else []))
    return found


def _fill(row: KernelRow, latency: Latency, graph_us: float | None, floor: float | None, eager: float | None) -> None:
    row.median_us, row.p95_us = 1e3 * latency.p50, 1e3 * latency.p95
    row.ci_low_us, row.ci_high_us = (1e3 * end for end in latency.interval)
    row.samples, row.stop_reason, row.graph_us = len(latency.samples_ms), latency.stop_reason, graph_us
    row.floor_us = floor
    row.floor_share = None if floor is None else floor / (graph_us or row.median_us)
    row.speedup_over_eager = None if eager is None else eager / row.median_us


def _row(
    planned: Planned, contender: Contender, impls: int, device: str, started: str, environment: Environment
) -> KernelRow:
    return KernelRow(
        planned.kernel,
        planned.case,
        planned.pass_,
        planned.dtype,
        contender.impl.name,
        contender.status,
        contender.reason,
        contender.impl.launches,
        impls,
        rel_err=contender.error,
        rel_err_limit=contender.limit,
        device=device,
        device_name=environment.device_name,
        torch=environment.torch,
        triton=environment.triton,
        vitbench=environment.vitbench,
        commit=environment.commit,
        dirty=environment.dirty,
        driver=environment.driver,
        threads=environment.threads,
        started_at=started,
    )
