"""Stage 7: the audit's modelled kernel times beside the measured ones; in audit.csv and prediction.csv."""

from __future__ import annotations

import csv
import importlib.util
import os
import statistics
import time
from fnmatch import fnmatchcase

from vitkernels import Launch

from vitbench.audit import records, validate
from vitbench.audit.records import Row
from vitbench.certify import kernels
from vitbench.certify.stage import NOT_RUN, Context, Line, Stage, verdict
from vitbench.errors import InputError
from vitbench.measure import device as devices

COLUMNS = (*validate.COLUMNS, "launches")
#: What the model must reach to be believed: it is to rank kernels; its level may be off by half.
LEAST_CORRELATION = 0.8
RATIOS = (0.5, 1.5)
#: Compiled in one go, a few for each process; between two of them what there is goes to the file.
_AT_ONCE = 4
_SMALL = "bias_attention/coatnet_0-s*-224/fwd/bf16"


def arch_of(context: Context) -> int:
    """90 for sm_90: of the GPU, and of the rehearsal without one."""
    if context.small:
        return 90
    library = devices.nvml()
    assert library is not None
    major, minor = library.nvmlDeviceGetCudaComputeCapability(devices.nvml_handle(context.device))
    return 10 * int(major) + int(minor)


def _measured(context: Context) -> list[dict[str, str]]:
    """Fused kernels' measurements and what they launch, in the columns that `vitbench audit --validate` reads."""
    found = [row for row, _ in kernels.timed(kernels.read(context)) if row.get("impl") == kernels.FUSED]
    return [{name: row[name] for name in COLUMNS} for row in found]


def _wanted(launch: Launch, measured: list[dict[str, str]]) -> bool:
    return any(
        (launch.op, launch.case, launch.dtype) == (row["kernel"], row["case"], row["dtype"])
        and any(fnmatchcase(launch.pass_name, part) for part in row["launches"].split("+"))
        for row in measured
    )


def _run(context: Context, deadline: float) -> bool:
    from vitbench.audit import registry
    from vitbench.audit.model import chips
    from vitbench.audit.run import audit_launches

    arch, measured = arch_of(context), _measured(context)
    if arch not in chips.CHIPS or not (measured or context.small) or _absence():
        return False
    with (context.out / "prediction.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(measured)
    if context.small:
        wanted = registry.launches(["vitkernels"], arch, _SMALL)
    else:
        wanted = [launch for launch in registry.launches(["vitkernels"], arch) if _wanted(launch, measured)]
    card = None if context.small else chips.card_named(devices.environment(context.device).device_name)
    rows = _audited(context)
    todo = [launch for launch in wanted if launch.id not in {row.launch_id for row in rows}]

    def late() -> bool:
        return time.monotonic() >= deadline

    processes = os.cpu_count() or 1
    at_once = _AT_ONCE * processes
    for start in range(0, len(todo), at_once):
        if late():
            break
        chunk = [(launch, arch) for launch in todo[start : start + at_once]]
        found = audit_launches(chunk, processes, stop=late, card=card.name if card else "")
        rows += [item.row for item in found]
        records.write_csv(rows, context.out / "audit.csv")
    return False


def _absence() -> str:
    """What is missing, in a line, or ""."""
    found = importlib.util.find_spec("numba")
    return "" if found else "numba, which the audit simulates with, is not installed: pip install 'vitbench[audit]'"


def _audited(context: Context) -> list[Row]:
    path = context.out / "audit.csv"
    return records.read_csv(path) if path.exists() else []


def _judge(context: Context) -> list[Line]:
    what = "modelled kernel times rank kernels as the GPU does"
    rows = _audited(context)
    path = context.out / "prediction.csv"
    measured = validate.measurements(path) if path.exists() else []
    if not rows and (absent := _absence()):
        return [Line(what, NOT_RUN, absent)]
    if not measured:
        return [Line(what, NOT_RUN, f"nothing is measured to compare with; {len(rows)} launches audited")]
    try:
        pairs = validate.pairs(rows, path)
    except InputError as error:
        return [Line(what, NOT_RUN, str(error))]
    correlation = validate.rank_correlation(pairs)
    ratio = statistics.median(pair.modelled_us / pair.measured_us for pair in pairs)
    told = f"{len(pairs)} of {len(measured)} measured passes audited"
    level = f"median of modelled / measured between {RATIOS[0]} and {RATIOS[1]}"
    return [
        Line(f"{what}: correlation of at least {LEAST_CORRELATION}", NOT_RUN, f"{told}: too few to rank")
        if correlation is None
        else Line(
            f"{what}: correlation of at least {LEAST_CORRELATION}",
            verdict(correlation >= LEAST_CORRELATION),
            f"{correlation:.3f}; {told}",
        ),
        Line(level, verdict(RATIOS[0] <= ratio <= RATIOS[1]), f"{ratio:.2f}; {told}"),
    ]


STAGE = Stage("prediction", "modelled kernel times beside measured ones", 5, _run, _judge)
__all__ = ["LEAST_CORRELATION", "RATIOS", "STAGE", "arch_of"]
