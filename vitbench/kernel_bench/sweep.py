"""A run over kernels: problem after problem into a CSV, resumable, within a budget of time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from vitbench.bench.build import use_device
from vitbench.kernel_bench import group, rows, timing
from vitbench.kernel_bench.cases import Planned, plan
from vitbench.kernel_bench.rows import KernelRow
from vitbench.measure import device as devices
from vitbench.results import journal
from vitbench.results.row import Environment

DONE, BUDGET, DEVICE_LOST = "done", "budget", "device lost"


@dataclass(frozen=True)
class Finished:
    """What a run did.

    Attributes:
        stopped: "done", "budget" (call again to go on) or "device lost" (call again in a new process).
        measured, resumed, left: problems measured now, found complete in the file, and not reached.
    """

    rows: list[KernelRow]
    stopped: str
    measured: int
    resumed: int
    left: int


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Without TF32 in anyone's fp32, and put back afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def run(
    pattern: str,
    device: str,
    dtypes: Sequence[str],
    budget_s: float,
    out: Path,
    *,
    tell: Callable[[str], None] = lambda text: None,
    max_seconds: float = timing.MAX_SECONDS,
) -> Finished:
    """Times every implementation of every problem that matches, the most telling first, into `out`.

    Rows that the file has are not measured again. The budget is looked at before each problem and bounds what it
    spends on timing; building, compiling and verifying one are not cut short.

    Args:
        pattern: wildcards on kernel/case/pass/dtype, or parts of it, separated by commas.
        device: "cpu", "cuda" or "cuda:N"; on the CPU small shapes and no kernels, only their rivals.
        dtypes: of "bf16", "fp16", "fp32", in the order to be measured.
        budget_s: seconds, may be math.inf.
        out: a CSV of `KernelRow`; samples go to a .samples.jsonl beside it.
        tell: called with a line after each problem.
        max_seconds: that timing one implementation of a problem may take.

    Raises: InputError on bad input, or where the file's rows are of another machine, commit or version.
    """
    device = devices.check_device(device)
    use_device(device)
    planned = plan(pattern, device, dtypes)
    environment = devices.environment(device)
    deadline = time.monotonic() + budget_s
    written: list[KernelRow] = []
    measured = resumed = 0
    stopped = DONE
    with journal.locked(out), exact_fp32():
        old = rows.read(out)
        rows.check_environment(out, old, environment)
        done: dict[str, dict[str, KernelRow]] = {}
        for row in old:
            done.setdefault(row.group, {})[row.impl] = row
        for number, item in enumerate(planned):
            have = done.get(item.id, {})
            if have and len(have) == next(iter(have.values())).impls:
                resumed += 1
                continue
            if time.monotonic() >= deadline:
                stopped = BUDGET
                break
            try:
                found = _measure(item, device, environment, have, max_seconds, deadline)
            except group.DeviceLost as lost:
                for row in lost.rows:
                    rows.append(out, row)
                written += lost.rows
                tell(f"{item.id}: {lost}; run again to go on")
                stopped = DEVICE_LOST
                break
            for row, samples in found:
                rows.append(out, row, samples)
                written.append(row)
            measured += 1
            tell(f"[{number + 1}/{len(planned)}] {item.id}: {summary([row for row, _ in found])}")
    return Finished(written, stopped, measured, resumed, len(planned) - measured - resumed)


def _measure(
    item: Planned,
    device: str,
    environment: Environment,
    have: dict[str, KernelRow],
    max_seconds: float,
    deadline: float,
) -> list[tuple[KernelRow, list[float]]]:
    eager = have["eager"].median_us if "eager" in have else None
    try:
        return group.measure(item, device, environment, set(have), eager, max_seconds, deadline)
    finally:
        torch._dynamo.reset()  # the next problem's shapes are others
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()


def summary(found: Sequence[KernelRow]) -> str:
    """Times in us, fastest first, then what has none and why."""
    timed = sorted((row.median_us, row.impl) for row in found if row.median_us is not None)
    rest = [f"{row.impl} {row.status}" for row in found if row.median_us is None]
    return ", ".join([*(f"{impl} {us:.1f} us" for us, impl in timed), *rest])
