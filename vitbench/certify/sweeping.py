"""How stages that measure models do it: the sweep of `vitbench bench`, its CSV and its resuming, until a deadline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitbench import selection
from vitbench.bench import sweep
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case, group
from vitbench.bench.progress import ConsoleProgress
from vitbench.certify.stage import FAIL, NOT_RUN, PASS, Context, Line
from vitbench.console import console
from vitbench.errors import InputError
from vitbench.measure import device as devices
from vitbench.results import journal, lines
from vitbench.results.row import Row


def missing(model: str) -> str:
    """Why a model of another library cannot be had here; "" where it can."""
    try:
        selection.entry(model)
    except InputError as error:
        return str(error)
    return ""


def measure(cases: Sequence[Case], path: Path, options: SweepOptions, deadline: float) -> bool:
    """Measures what `path` lacks of the cases, in their order; whether the user interrupted.

    A group that the deadline cut off twice is measured behind all others: it may never fit and keep them waiting.
    """
    cut_off = path.with_suffix(".cut.csv")
    times = Counter(cut_off.read_text(encoding="utf-8").split() if cut_off.exists() else ())
    groups = group([case for case in cases if not missing(case.model)])
    groups.sort(key=lambda members: max(times[case.id] for case in members) > 1)
    here = [case for members in groups for case in members]
    if not here:
        return False
    environment = devices.environment(here[0].device)
    with ConsoleProgress(console(), len(here)) as progress:
        done = sweep.run(here, path, environment, options, progress, deadline)
    for case in done.cut_off:
        lines.append(cut_off, case.id + "\n", "case\n")
    return done.interrupted


def rows_of(context: Context, file: str) -> dict[str, Row]:
    """The rows of one of the folder's CSVs by case id; none where it is not there yet."""
    path = context.out / file
    return {row.case: row for row in journal.read(path)} if path.exists() else {}


def progress_line(what: str, cases: Sequence[Case], rows: dict[str, Row]) -> Line:
    """How many of the cases are rows, of what status; what fails fails the line, running out of memory does not.

    Of what is unsupported, fused alone must run where a kernel serves the model: on a GPU it fails the line, without
    one the line says that it was not run.
    """
    if why := next(filter(None, (missing(case.model) for case in cases)), ""):
        return Line(what, NOT_RUN, why)
    done = [rows[case.id] for case in cases if case.id in rows]
    counts = Counter(row.status for row in done)
    told = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
    told = f"{len(done)} of {len(cases)} cases: {told}"
    failed = [row for row in done if row.status not in ("ok", "unsupported", "oom")]
    if failed:
        return Line(what, FAIL, f"{told}; {failed[0].case}: {failed[0].reason}")
    refused = [row for row in done if row.status == "unsupported" and row.impl.startswith("fused") and _served(row)]
    if refused and refused[0].device != "cpu":
        return Line(what, FAIL, f"{told}; {refused[0].case}: {refused[0].reason}")
    if refused:
        return Line(what, NOT_RUN, f"{told}; {refused[0].impl} was not run: {refused[0].reason}")
    return Line(what, PASS if len(done) == len(cases) else NOT_RUN, told)


def _served(row: Row) -> bool:
    """Whether there are kernels for the row's model."""
    from vitbench.ops.fused import UNSERVED

    return row.family not in UNSERVED


def absence(case: Case, rows: dict[str, Row]) -> str:
    """Why a case has no measurement."""
    if case.id not in rows:
        return missing(case.model) or f"{case.id} not reached yet"
    row = rows[case.id]
    return f"{case.id} is {row.status}: {row.reason}" if row.reason else f"{case.id} is {row.status}, but not measured"


__all__ = ["absence", "measure", "missing", "progress_line", "rows_of"]
