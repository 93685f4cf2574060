"""`vitbench max-batch`: the largest batch that a GPU holds, measured, beside the predicted one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vitbench import cards, columns
from vitbench.bench.executor import LocalExecutor, WorkerLost
from vitbench.bench.options import BenchOptions, MaxBatchOptions, SweepOptions
from vitbench.bench.plan import Case
from vitbench.columns import Column
from vitbench.errors import InputError
from vitbench.measure import device as devices
from vitbench.memory.setting import batch_words

LARGEST = 2**20


def search(fits: Callable[[int], bool], first: int = 1) -> int:
    """The largest batch that fits, 0 for none, from a first guess: by doubling away from it, then by bisection.

    `fits` is asked once for each batch; whatever fits, less fits too.
    """
    low, high = 0, LARGEST + 1
    at, step = min(max(1, first), LARGEST), max(1, first // 64)
    while low < at < high:  # away from the guess, ever faster, until it is between two answers
        if fits(at):
            low, at = at, min(at + step, LARGEST)
        else:
            high, at = at, max(at - step, 1)
        step *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def run(given: MaxBatchOptions) -> int:
    """Prints a line for each model, mode and dtype; 1 where one could not be measured.

    Raises: InputError where there is no GPU, or on options that cannot be used.
    """
    from vitbench.bench import command, predict

    cases = command.plan(
        BenchOptions(
            model=given.model,
            resolution=given.resolution,
            batch="1",
            impl=given.impl,
            mode=given.mode,
            dtype=given.dtype,
            layout=given.layout,
        ),
        device=given.device or "cuda",
    )
    columns.check(table([]), given)
    instead = "`vitbench memory` predicts it on any machine"
    try:
        device = devices.check_device(given.device or "cuda")
    except InputError as error:
        raise InputError(str(error).replace("use --device cpu", instead)) from None
    if device == "cpu":
        raise InputError(f"max-batch measures a GPU's memory; {instead}")
    here = cards.of_device(devices.environment(device).device_name)
    lines: list[Line] = []
    for case in cases:
        try:
            predicted = predict.largest(case, here.name) if here else None
        except predict.CannotPredict:
            predicted = None
        try:
            found = measure(case, predicted or 1, given.time_limit)
        except RuntimeError as error:
            lines.append(Line(case.id.replace("/b1/", "/"), None, predicted, str(error)))
        else:
            lines.append(Line(case.id.replace("/b1/", "/"), found, predicted))
    columns.show(table(lines), given)
    return int(any(line.reason for line in lines))


@dataclass(frozen=True)
class Line:
    """The largest batch of a case, measured and predicted; `reason` says why it was not measured."""

    case: str
    measured: int | None
    predicted: int | None
    reason: str = ""


def table(lines: Sequence[Line]) -> list[Column]:
    """A row for each case; one that could not be measured has a note."""

    def said(batch: int | None) -> str:
        return "" if batch is None else batch_words(batch)

    ratios = [line.measured / line.predicted if line.measured and line.predicted else None for line in lines]
    return [
        Column("case", [line.case for line in lines], "key"),
        Column("measured", [line.measured for line in lines], show=said),
        Column("predicted", [line.predicted for line in lines], show=said),
        Column("measured / predicted", ratios, show=lambda ratio: "" if ratio is None else f"{ratio:.3f}"),
        Column("note", [line.reason for line in lines], "note"),
    ]


def measure(case: Case, first: int, time_limit: float) -> int:
    """The largest batch of a case that its device holds; each try in a process that may die.

    Raises: RuntimeError with the reason where a try fails otherwise than for want of memory.
    """
    executor = LocalExecutor(SweepOptions(time_limit=time_limit, passes=("memory",)), lambda phase: None)

    def fits(batch: int) -> bool:
        try:
            (result,) = executor.submit([replace(case, batch=batch)]).result()
            status, reason = result.found.status, result.found.reason
        except WorkerLost as lost:
            status, reason = lost.status, lost.reason
        if status not in ("ok", "oom"):
            raise RuntimeError(f"{status} at batch {batch}: {reason}")
        return status == "ok"

    try:
        return search(fits, first)
    finally:
        executor.kill()


__all__ = ["Line", "measure", "run", "search", "table"]
