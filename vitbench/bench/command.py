"""What the commands do: defaults for the machine at hand, a sweep, then its table, files and pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitbench import cards, columns, selection
from vitbench.bench import plan as planning
from vitbench.bench import sweep, telling
from vitbench.bench.advice import common_reason
from vitbench.bench.options import BenchOptions, MemoryCurvesOptions, ReportOptions, SweepOptions
from vitbench.bench.plan import Case, Grid
from vitbench.bench.progress import ConsoleProgress, duration
from vitbench.bench.sweep import Summary
from vitbench.catalog import Resolution, parse_resolution
from vitbench.columns import Shown
from vitbench.console import console
from vitbench.errors import InputError, nearest
from vitbench.measure import device as devices
from vitbench.measure import power
from vitbench.names import file_name
from vitbench.ops.names import IMPLS
from vitbench.report import timm
from vitbench.report.standouts import standouts
from vitbench.report.tables import explained, sweep_columns
from vitbench.results import journal
from vitbench.results.row import Environment, Found, Row, Setup
from vitbench.variant import COMPILE_MODES, Variant

#: A GPU sweeps widely; a CPU sweep has the same shape and ends within minutes.
DEFAULTS = {
    "cuda": {"resolution": "x0.75,native,x1.5", "batch": "1,4,16,64,256", "impl": "eager,fused,compile"},
    "cpu": {"resolution": "x0.5,native", "batch": "1,2", "impl": "eager"},
}
#: Seconds of samples a case gets at most: on a CPU noise rarely shrinks, and a step can take a second.
MAX_TIME = {"cuda": 15.0, "cpu": 2.0}
EXPORTS = ("timm",)


def plan(given: BenchOptions, device: str = "") -> list[Case]:
    """The cases of the options, on `device` where it need not be here; an empty option takes the machine's default.

    Where implementations are not named, `compile` is planned only where it tells most; where sizes and batches are not
    named either, what tells most is planned, as long as DEFAULT_BUDGET. --all plans everything.

    Raises: InputError on anything unknown, and when a model cannot take a resolution.
    """
    if given.gpu:
        if not given.dry_run:
            raise InputError("--gpu plans for a card that need not be here: give --dry-run, or measure with --device")
        if given.device:
            raise InputError("--gpu names a card that need not be here, --device one that is: give one of them")
        cards.find(given.gpu)
    if not device:
        here = devices.check_device(given.device) if given.device and not given.gpu else ""
        device = "cuda" if given.gpu else here or devices.default_device()
    kind = "cpu" if device == "cpu" else "cuda"
    defaults = DEFAULTS[kind]
    models = selection.match(given.model)
    cases = planning.expand(
        Grid(
            models=models,
            impls=selection.split(given.impl or defaults["impl"], "impl", IMPLS),
            modes=selection.split(given.mode, "mode", selection.MODES),
            dtypes=selection.split(given.dtype, "dtype", selection.DTYPES),
            layouts=selection.split(given.layout, "layout", selection.LAYOUTS),
            resolutions=selection.split_resolutions(given.resolution or defaults["resolution"]),
            batches=selection.split_batches(given.batch or defaults["batch"]),
            device=device,
            native=_configured(given.config, models) if given.config else None,
        )
    )
    if given.all or given.impl:
        return cases
    dtypes = {case.dtype for case in cases}
    cases = [case for case in cases if case.impl != "compile" or telling.worth_compiling(case, sorted(dtypes))]
    if given.resolution or given.batch or given.budget:
        return cases
    max_time = given.max_time or MAX_TIME[kind]
    return telling.within(cases, telling.DEFAULT_BUDGET[kind], SweepOptions(min_time=given.min_time, max_time=max_time))


def _budget(given: BenchOptions, device: str) -> float | None:
    """Seconds after which a sweep stops: those asked for, or those of a sweep in which nothing was asked for."""
    if given.budget:
        return telling.parse_duration(given.budget)
    asked = given.all or given.impl or given.resolution or given.batch
    return None if asked else telling.DEFAULT_BUDGET["cpu" if device == "cpu" else "cuda"]


def default_out(models: str, cases: Sequence[Case]) -> Path:
    """results/<device>/<models>.csv under the current folder."""
    device = devices.slug(devices.environment(cases[0].device).device_name)
    return Path("results") / device / f"{file_name(models.replace('*', 'all'))}.csv"


def options(cases: Sequence[Case], given: BenchOptions) -> SweepOptions:
    """Checked options of a sweep.

    Raises: InputError when a folder, a file or a number cannot be used.
    """
    max_time = given.max_time
    if max_time is None:
        max_time = max(given.min_time, MAX_TIME["cpu" if cases[0].device == "cpu" else "cuda"])
    if given.time_limit <= 0 or given.min_time <= 0 or max_time < given.min_time:
        raise InputError("--time-limit and --min-time are seconds above zero, --max-time is at least --min-time")
    if given.graphs and cases[0].device == "cpu":
        raise InputError("--graphs records work of an NVIDIA GPU; on the CPU leave it out")
    if given.images:
        from vitbench.models.inputs import image_files

        image_files(Path(given.images))
    saved = parse_resolution(given.weights_resolution) if given.weights_resolution else None
    if given.weights:
        _check_weights(Path(given.weights), sorted({case.model for case in cases}), saved, variant_of(given, cases))
    elif saved:
        raise InputError("--weights-resolution is the size that a file was saved at: give --weights too")
    return SweepOptions(
        time_limit=given.time_limit,
        min_time=given.min_time,
        max_time=max_time,
        images=given.images,
        weights=given.weights,
        weights_resolution=given.weights_resolution,
        fresh=given.fresh,
        graphs=given.graphs,
        variant=variant_of(given, cases),
    )


def variant_of(given: BenchOptions, cases: Sequence[Case]) -> Variant:
    """In which form models are wanted.

    Raises: InputError on a number or a mode that cannot be, or that no case has a use for.
    """
    if given.compile_mode and given.compile_mode not in COMPILE_MODES:
        raise InputError(
            f"--compile-mode {given.compile_mode!r} is unknown: {nearest(given.compile_mode, COMPILE_MODES)}"
        )
    if given.compile_mode and not {case.impl for case in cases} & {"compile", "fused+compile"}:
        raise InputError("--compile-mode is for --impl compile or fused+compile")
    return Variant(
        num_classes=given.num_classes,
        drop_path=given.drop_path,
        reparam=given.reparam,
        checkpointing=given.checkpointing,
        config=given.config,
        compile_mode=given.compile_mode,
    ).check({case.mode for case in cases})


def _configured(path: str, models: list[str]) -> Resolution:
    """The native size of a model by its configuration in a file.

    Raises: InputError where it is none of the one model that is chosen.
    """
    if len(models) != 1 or not models[0].startswith("transformers:"):
        raise InputError(f"--config belongs to one transformers: model, and {', '.join(models[:3])} is chosen")
    from vitbench.models import foreign, transformers_configs

    return transformers_configs.native(foreign.load("transformers"), models[0].partition(":")[2], path)


def _check_weights(path: Path, models: list[str], saved: Resolution | None, variant: Variant) -> None:
    if len(models) != 1:
        raise InputError(f"--weights belongs to one model, and {len(models)} are chosen ({', '.join(models[:3])}, ...)")
    from vitbench.models import spec_of
    from vitbench.models.weights import load_weights
    from vitbench.ops.bundle import EAGER

    spec = spec_of(models[0], replace(variant, reparam=False))
    load_weights(spec.build(EAGER, spec.resolution, spec.num_classes), models[0], path, saved)


def print_plan(
    cases: Sequence[Case],
    export: str = "",
    baseline: Path | None = None,
    gpu: str = "",
    options: SweepOptions | None = None,
) -> int:
    """`--dry-run`: every case with parameters (10^6), GMACs (10^9, batch 1) and predicted peak memory (MiB).

    With `gpu`, the name of a card, also whether it fits there.

    A case that no machine can run, as its model has no such implementation or takes no such size, says so, and so
    does one that cannot be predicted; the plan goes on.

    Returns: the exit code, 1 when a case would end as an error.

    Raises: InputError as the sweep would on its baseline or export.
    """
    held_against = _read_options(export, baseline)
    options = options or SweepOptions()
    out = console()
    width = max(len(case.id) for case in cases)
    numbers_first = out.is_terminal and out.width < width + 40
    header = f"{'params M':>10}  {'GMACs':>9}  {'predicted MiB':>13}"
    out.print(f"{header}  case" if numbers_first else f"{'case':{width}}  {header}", soft_wrap=True)
    failed = 0
    for case in cases:  # a line as soon as it is known: predicting a large training step takes seconds
        said, status = _planned(case, gpu, options.variant)
        failed += status not in ("ok", "unsupported")
        row = sweep.row_of(case, Found(), Environment(device_name=""), Setup(), "")
        speed = held_against.of(row) if held_against else None
        line = f"{said}  {case.id}" if numbers_first else f"{case.id:{width}}  {said}"
        out.print(line + (f"  baseline {speed:,.1f} img/s" if speed else ""), soft_wrap=True)
    out.print(f"about {duration(telling.total(cases, options))} to measure")
    out.print(f"{len(cases)} cases; nothing was measured" + (f"; {failed} would fail" if failed else ""))
    return int(failed > 0)


def _planned(case: Case, gpu: str, variant: Variant) -> tuple[str, str]:
    """What is known of a case in one line, and the status that its row would have."""
    from vitbench.bench import predict
    from vitbench.bench.failures import classify
    from vitbench.models import unserved

    try:
        count = predict.count(case.model, case.resolution, variant)
        memory = predict.memory_mib(case, variant)
        why = unserved(case.model, case.impl, case.resolution, variant)
    except Exception as error:
        status, reason = classify(error)
        return f"{status}: {reason}", status
    predicted = "" if memory is None else f"{memory:,.1f}"
    line = f"{count.params_m:10.6f}  {count.gmacs:9.4f}  {predicted:>13}"
    fits = predict.verdict(case, gpu, variant) if gpu and memory is not None else ""
    notes = [*([fits] if fits else []), *count.differences, *([f"unsupported: {why}"] if why else [])]
    return "  ".join([line, *notes]).rstrip(), "unsupported" if why else "ok"


def _sweep(cases: Sequence[Case], out: Path, options: SweepOptions, budget: float | None = None) -> Summary:
    """Measures until the budget, in seconds, is spent; the most telling cases first where there is one."""
    start = time.monotonic()
    printer = console()
    device = cases[0].device
    _tell_plan(cases, out, options, budget)
    if "energy" in options.passes:
        source, why = power.find(device)
        if source is None:
            printer.print(f"energy is not measured: {why}", soft_wrap=True)
    with ConsoleProgress(printer, len(cases)) as progress:
        if budget is None:
            return sweep.run(cases, out, devices.environment(device), options, progress)
        first = telling.ordered(cases)
        summary = sweep.run(first, out, devices.environment(device), options, progress, start + budget)
    rows = {row.case: row for row in summary.rows}
    summary.rows = [rows[case.id] for case in cases if case.id in rows]
    return summary


def _tell_plan(cases: Sequence[Case], out: Path, options: SweepOptions, budget: float | None) -> None:
    """How many cases are to be measured, and about how long it will take."""
    there = {row.case for row in journal.read(out)} if out.exists() and not options.fresh else set()
    todo = [case for case in cases if case.id not in there]
    if not todo:
        return
    about = telling.total(todo, options) if "latency" in options.passes else None
    text = f"{len(todo)} cases to measure" + (f", about {duration(about)}" if about else "")
    if budget is not None:
        text += f", the most telling first; at most {duration(budget)}, and the same command goes on from there"
    console().print(text, soft_wrap=True)


def _finish(summary: Summary, out: Path, files: Sequence[Path], planned: int) -> int:
    """Prints what was written and how it ended; returns the exit code."""
    printer = console()
    if written := ", ".join(str(path) for path in files if path.exists()):
        printer.print(f"wrote {written}", soft_wrap=True)
    if summary.interrupted:
        printer.print(f"stopped with {len(summary.rows)} of {planned} cases done; the same command goes on from there")
        return 130
    if left := planned - len(summary.rows):
        printer.print(f"the time was up with {left} of {planned} cases left; the same command goes on from there")
    if why := common_reason(summary.rows):
        printer.print(why, soft_wrap=True)
    elif summary.failed:
        printer.print(f"{len(summary.failed)} of {planned} cases failed; their rows say why")
    return int(bool(summary.failed))


def bench(given: BenchOptions) -> int:
    """Runs a sweep, prints its table, writes its exports and pictures; returns the exit code.

    Raises: InputError on options that cannot be used.
    """
    columns.check(sweep_columns([]), given)
    cases = plan(given)
    checked = options(cases, given)
    budget = _budget(given, cases[0].device)
    if left_out := len(plan(replace(given, all=True))) - len(cases):
        console().print(f"planned is what tells most: --all adds {left_out} cases", soft_wrap=True)
    if given.dry_run:
        return print_plan(cases, given.export, given.baseline, given.gpu, checked)
    held_against = _read_options(given.export, given.baseline)
    out = given.out or default_out(given.model, cases)
    summary = _sweep(cases, out, checked, budget)
    files = [out, journal.samples_path(out)]
    if summary.rows:
        _tell(summary.rows, held_against, given.explain, given)
        files += _export(summary.rows, out, given.export)
        if len(summary.rows) > 1:
            files += _draw(summary.rows, out, timed=True)
        else:  # a single case is no curve, and drawing takes longer than a small case
            console().print(
                f"no curve to draw of one case; `vitbench report {out}` draws it all the same", soft_wrap=True
            )
    return _finish(summary, out, files, len(cases))


def memory_curves(given: MemoryCurvesOptions) -> int:
    """Predicts every case's peak memory, measures those up to a batch size, draws both; returns the exit code.

    With --gpu the card need not be here.

    Raises: InputError on options that cannot be used.
    """
    if given.gpu:
        if given.budget:
            raise InputError("--budget is for what is measured: leave out --gpu")
        from vitbench.bench import card_curves

        return card_curves.run(given)
    columns.check(sweep_columns([]), given)
    cases = plan(
        BenchOptions(
            model=given.model,
            resolution=given.resolution,
            batch=given.batch,
            impl="eager",
            dtype=given.dtype,
            mode=given.mode,
            device=given.device,
        )
    )
    out = given.out or default_out(f"memory-{given.model}", cases)
    up_to = given.measure_up_to
    if up_to < 0:
        up_to = 4 if cases[0].device == "cpu" else max(case.batch for case in cases)
    options = SweepOptions(time_limit=given.time_limit, passes=("memory",), fresh=given.fresh, measure_up_to=up_to)
    summary = _sweep(cases, out, options, telling.parse_duration(given.budget) if given.budget else None)
    files = [out]
    if summary.rows:
        columns.show(sweep_columns(summary.rows), given)
        files += _draw(summary.rows, out, timed=False)
    return _finish(summary, out, files, len(cases))


def report(given: ReportOptions) -> None:
    """Prints the table of a CSV and writes its exports and pictures; with --out, the page of all files.

    Raises: InputError when a file is not a vitbench CSV, or options do not go together.
    """
    if given.out is not None:
        if given.export or given.baseline:
            raise InputError("--export and --baseline are for one sweep: leave out --out")
        from vitbench.report import command as pages

        return pages.run(given.csv, given.out, given.against)
    if len(given.csv) > 1 or given.against:
        raise InputError("several files, or --against, make a page: say where with --out DIR")
    csv = given.csv[0]
    held_against = _read_options(given.export, given.baseline)
    rows = journal.read(csv)
    if not rows:
        raise InputError(f"{csv} holds no row")
    _tell(rows, held_against, given.explain, given)
    timed = any(row.speed.img_per_s is not None for row in rows)
    files = _export(rows, csv, given.export) + _draw(rows, csv, timed=timed)
    if files:
        console().print("wrote " + ", ".join(map(str, files)), soft_wrap=True)
    return None


def _tell(rows: Sequence[Row], held_against: timm.Baseline | None, explain: bool, asked: Shown) -> None:
    """The table, what its columns mean where asked, and what stands out."""
    out = console()
    shown = columns.chosen(sweep_columns(rows, held_against), asked)
    columns.show(shown)
    for line in explained(shown) if explain else ():
        out.print(line, soft_wrap=True)
    for line in standouts(rows):
        out.print(line, soft_wrap=True)
    if held_against and (text := held_against.unmatched(rows)):
        console().print(text, soft_wrap=True)


def _read_options(export: str, baseline: Path | None) -> timm.Baseline | None:
    if export and export not in EXPORTS:
        raise InputError(f"--export {export!r} is unknown: {nearest(export, EXPORTS)}")
    return timm.read_baseline(baseline) if baseline else None


def _export(rows: Sequence[Row], out: Path, export: str) -> list[Path]:
    return timm.export(rows, out.parent) if export == "timm" else []


def _draw(rows: Sequence[Row], out: Path, *, timed: bool) -> list[Path]:
    """The picture beside the CSV, of throughput or else of memory, and the page with everything.

    None where the plotting packages are missing.
    """
    from vitbench.report import curves, page  # with pandas, which takes as long as a small case

    if curves.plotting_missing():
        console().print(f"no picture drawn: {curves.INSTALL}")
        return []
    chart = curves.throughput_chart(rows) if timed else curves.memory_chart(rows)
    if chart is None:
        return []
    html = out.with_suffix(".html")
    page.write(rows, html, f"vitbench: {out.stem}")
    return [*curves.save(chart, out.with_suffix("")), html]
