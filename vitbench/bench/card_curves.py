"""`memory-curves --gpu`: curves for a named card, predicted; where that card is here, measured points beside them."""

from __future__ import annotations

from pathlib import Path

from vitbench import cards, columns, selection
from vitbench.bench import sweep
from vitbench.bench.options import MemoryCurvesOptions, SweepOptions
from vitbench.bench.plan import Case
from vitbench.bench.progress import ConsoleProgress
from vitbench.catalog import parse_resolution
from vitbench.console import console
from vitbench.errors import InputError
from vitbench.measure import device as devices
from vitbench.memory import command
from vitbench.memory.options import MemoryOptions
from vitbench.memory.plan import Row
from vitbench.names import file_name

#: Over which the largest batch is drawn, unless sizes are given.
RESOLUTIONS = "native,224..512:96"


def run(given: MemoryCurvesOptions) -> int:
    """Prints and draws; 1 where a case has no prediction.

    Raises: InputError on options that cannot be used.
    """
    if given.device:
        raise InputError("--gpu names a card that need not be here, --device one that is: give one of them")
    names = [cards.find(name.strip()).name for name in given.gpu.split(",") if name.strip()]
    out = given.out or Path("results") / devices.slug(names[0]) / f"memory-{file_name(devices.slug(given.model))}.csv"
    columns.check(command.table([], names), given)
    rows = command.predicted(
        MemoryOptions(
            model=given.model,
            gpu=",".join(names),
            resolution=RESOLUTIONS if given.resolution == "native" else given.resolution,
            batch=given.batch,
            dtype=given.dtype,
            mode=given.mode,
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    files = command.write(rows, out.with_suffix(""), f"Peak memory on {', '.join(names)}", measured(rows, given, out))
    columns.show(command.table(rows), given)
    command.print_notes(rows)
    console().print("wrote " + ", ".join(map(str, files)), soft_wrap=True)
    return int(any(row.peak_mib is None for row in rows))


def measured(rows: list[Row], given: MemoryCurvesOptions, out: Path) -> dict[Row, float]:
    """Peaks in MiB of the rows whose card is this machine's, measured up to the batch that the options say."""
    if devices.default_device() == "cpu":
        return {}
    here = cards.of_device(devices.environment("cuda").device_name)
    smallest = {row.model: row.resolution for row in reversed(rows)}
    of_row = {
        Case(row.model, "eager", row.mode, row.dtype, "nchw", parse_resolution(row.resolution), row.batch, "cuda"): row
        for row in rows
        if here is not None
        and row.gpu == here.name
        and row.peak_mib is not None
        and row.resolution == smallest[row.model]
        and row.dtype in selection.DTYPES
        and (given.measure_up_to < 0 or row.batch <= given.measure_up_to)
    }
    if not of_row:
        return {}
    options = SweepOptions(time_limit=given.time_limit, passes=("memory",), fresh=given.fresh)
    with ConsoleProgress(console(), len(of_row)) as progress:
        path = out.with_name(f"{out.stem}-measured.csv")
        summary = sweep.run(list(of_row), path, devices.environment("cuda"), options, progress)
    by_id = {case.id: row for case, row in of_row.items()}
    return {by_id[row.case]: row.memory.peak_mem_mib for row in summary.rows if row.memory.peak_mem_mib}


__all__ = ["RESOLUTIONS", "measured", "run"]
