"""`vitbench bench` on several devices or in jobs, `vitbench status`, `vitbench merge`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from vitbench import columns
from vitbench.bench import command as single
from vitbench.bench.options import BenchOptions, ReportOptions, SweepOptions
from vitbench.bench.plan import Case
from vitbench.bench.progress import ConsoleProgress, duration
from vitbench.cluster import folder as folders
from vitbench.cluster import follow, jobs, local, shards
from vitbench.cluster.folder import Run, Shard
from vitbench.cluster.merge import Merged, differences, merge
from vitbench.cluster.options import MergeOptions, StatusOptions
from vitbench.console import console
from vitbench.errors import InputError, nearest
from vitbench.measure import device as devices
from vitbench.report.tables import sweep_columns

EXECUTORS = ("local", "slurm", "submitit-local")
#: Predicted seconds of a shard where their number is not given; on this machine each device gets several, which evens
#: out what was predicted wrongly.
SHARD_S, EACH = 3600.0, 4
#: Of a job, beside what its cases are predicted to take: twice that, since predictions are rough, and the start.
STARTING_MIN = 15


def bench(given: BenchOptions) -> int:
    """Divides the cases into shards and has them measured; returns the exit code.

    Raises: InputError on options that cannot be used.
    """
    columns.check(sweep_columns([]), given)
    _check(given)
    on = local.slots(given.device) if given.executor == "local" else []
    device = _device(given, on)
    cases = single.plan(given, device)
    options = _settled(single.options(cases, given))
    seconds = shards.seconds(options)
    divided = shards.divide(cases, _count(given, cases, seconds, len(on)), seconds)
    loads = [sum(map(seconds, shard)) for shard in divided]
    console().print(_plan_line(len(cases), loads), soft_wrap=True)
    if given.dry_run:
        return single.print_plan(cases, options=options)
    executor = _executor(given, device, max(loads))  # which may not be there, before anything is written
    run, done = _opened(given, cases, divided, options)
    todo = [shard for shard in run.shards if shard.done() < len(shard.case_ids())]
    if executor is None:
        return _here(run, todo, on, given)
    todo = [shard for shard in todo if shard.number not in executor.live(run)] if done is not None else todo
    executor.submit(run, todo)
    return _submitted(run, todo, given)


def _check(given: BenchOptions) -> None:
    if given.executor not in EXECUTORS:
        raise InputError(f"--executor {given.executor!r} is unknown: {nearest(given.executor, EXECUTORS)}")
    if given.executor != "slurm":
        for option, value in (
            ("--slurm", given.slurm),
            ("--slurm-partition", given.slurm_partition),
            ("--slurm-gpus-per-task", given.slurm_gpus_per_task),
        ):
            if value:
                raise InputError(f"{option} is for --executor slurm, and this is --executor {given.executor}")
    if given.shards is not None and given.shards < 1:
        raise InputError(f"--shards {given.shards} should be 1 or more")
    if given.slurm_gpus_per_task is not None and given.slurm_gpus_per_task < 0:
        raise InputError(f"--slurm-gpus-per-task {given.slurm_gpus_per_task} should be 0 or more")
    if given.budget:
        raise InputError(
            "--budget stops a sweep on one device of this machine; jobs are limited by --slurm timeout_min="
        )
    shown = {"--export": given.export, "--baseline": given.baseline, "--explain": given.explain}
    for option in [name for name, value in shown.items() if value]:
        if given.executor != "local":
            raise InputError(
                f"{option} is for rows that are there: give it to `vitbench report`, after `vitbench merge`"
            )
    if given.gpu:
        raise InputError("--gpu plans for a card that need not be here: leave out --executor and give one --device")


def _device(given: BenchOptions, on: Sequence[local.Slot]) -> str:
    """What cases are measured on, as their ids say it; on a cluster it need not be here."""
    if given.executor == "local":
        return "cpu" if on[0].name == "cpu" else "cuda"
    if given.executor == "submitit-local":
        return "cpu" if (given.device or devices.default_device()) == "cpu" else "cuda"
    if given.device not in ("", "cpu", "cuda"):
        raise InputError(f"--device {given.device}: which GPU a job gets is SLURM's to say; give cuda or cpu")
    return given.device or ("cpu" if given.slurm_gpus_per_task == 0 else "cuda")


def _settled(options: SweepOptions) -> SweepOptions:
    """The same wherever they are read: files by their whole path, and nothing begun anew by a shard."""

    def whole(path: str) -> str:
        return str(Path(path).absolute()) if path else ""

    variant = replace(options.variant, config=whole(options.variant.config))
    return replace(options, images=whole(options.images), weights=whole(options.weights), variant=variant, fresh=False)


def _count(given: BenchOptions, cases: Sequence[Case], seconds: Callable[[Case], float], places: int) -> int:
    return given.shards or max(math.ceil(sum(map(seconds, cases)) / SHARD_S), EACH * places, 1)


def _plan_line(cases: int, loads: Sequence[float]) -> str:
    each = f"the longest about {duration(loads[0])}" if len(loads) > 1 else "as one job"
    shards_ = f"{len(loads)} shards" if len(loads) > 1 else "1 shard"
    return f"{cases} cases in {shards_}, {each}; about {duration(sum(loads))} of measuring in all"


def _executor(given: BenchOptions, device: str, longest: float) -> jobs.Executor | None:
    if given.executor == "slurm":
        gpus = given.slurm_gpus_per_task
        if gpus is None:
            gpus = 0 if device == "cpu" else 1
        minutes = math.ceil(2 * longest / 60) + STARTING_MIN
        return jobs.Slurm(given.slurm_partition, gpus, given.slurm or (), minutes)
    if given.executor == "submitit-local":
        visible = [
            slot.environment["CUDA_VISIBLE_DEVICES"] for slot in local.slots(given.device or device) if device != "cpu"
        ]
        if named := [one for one in visible if not one.isdigit()]:
            raise InputError(
                f"--executor submitit-local knows GPUs by number, and CUDA_VISIBLE_DEVICES names {named[0]}"
            )
        return jobs.Here([int(one) for one in visible])
    return None


def _opened(
    given: BenchOptions, cases: Sequence[Case], divided: Sequence[Sequence[Case]], options: SweepOptions
) -> tuple[Run, int | None]:
    """The run that goes on and how many of its cases are done, or a new one and None.

    Raises: InputError when its folder holds another sweep.
    """
    out = given.out or folders.default_folder(given.model)
    if given.fresh and (aside := folders.set_aside(out)) is not None:
        console().print(f"kept the old run as {aside}", soft_wrap=True)
    places = {case: place for place, case in enumerate(cases)}
    if not folders.exists(out):
        return folders.create(out, divided, places, options, given.executor), None
    run = folders.open_run(out)
    there = {case for shard in run.shards for _, case in shard.case_ids()}
    if there != {case.id for case in cases} or run.options != options:
        raise InputError(
            f"{out} is a run of {len(there)} other cases or options: give --fresh to begin anew "
            "(the old folder is kept) or another --out"
        )
    done = sum(shard.done() for shard in run.shards)
    console().print(f"{done} of {run.cases} cases are already in {out}", soft_wrap=True)
    return run, done


def _submitted(run: Run, todo: Sequence[Shard], given: BenchOptions) -> int:
    printer, name = console(), _short(run.folder)
    job_of = run.job_of()
    if todo:
        names = [job_of[shard.number] for shard in todo]
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        printer.print(f"submitted {len(todo)} of {len(run.shards)} shards as jobs {listed}", soft_wrap=True)
    else:
        printer.print("every shard is done or has its job: nothing to submit")
    printer.print(
        f"`vitbench status {name}` says how far they are, `vitbench merge {name}` makes one CSV", soft_wrap=True
    )
    return _follow(run) if given.follow else 0


def _follow(run: Run) -> int:
    try:
        follow.follow(run)
    except KeyboardInterrupt:
        console().print(f"left; the jobs go on: `vitbench status {_short(run.folder)}`", soft_wrap=True)
        return 130
    return 0 if follow.show(run) else 1


def _here(run: Run, todo: Sequence[Shard], on: Sequence[local.Slot], given: BenchOptions) -> int:
    """Measures here and now, then merges and shows what there is."""
    interrupted = False
    with ConsoleProgress(console(), run.cases) as progress:
        follower = follow.Follower(run, progress)
        try:
            local.work(run, todo, on, follower.look)
        except KeyboardInterrupt:
            interrupted = True
    merged = merge(run, run.folder / "merged.csv")
    if len(merged.written) == 1:
        path = merged.written[0][0]
        single.report(ReportOptions(csv=[path], export=given.export, baseline=given.baseline, explain=given.explain))
    code = _tell(run, merged)
    if interrupted:
        console().print(
            f"stopped with {run.cases - merged.missing} of {run.cases} cases done; the same command goes on"
        )
        return 130
    return code


def _tell(run: Run, merged: Merged) -> int:
    """Prints what a merge wrote and what it lacks; 0 where it is whole and every case is ok or unsupported."""
    printer = console()
    parts = [part for _, part in merged.written]
    for path, part in merged.written:
        printer.print(f"wrote {path}: {len(part.lines)} rows, {part.device}", soft_wrap=True)
    if len(parts) > 1:
        printer.print(
            f"rows differ in {'; '.join(differences(parts))}: a CSV for each, as they cannot be compared "
            "(--together writes one)",
            soft_wrap=True,
        )
    if merged.together:
        printer.print(f"rows of one CSV differ in {'; '.join(merged.together)}: do not compare them", soft_wrap=True)
    if merged.replaced:
        printer.print(f"{merged.replaced} cases were measured twice; the later row counts", soft_wrap=True)
    if merged.missing:
        printer.print(
            f"{merged.missing} of {run.cases} cases have no row yet: `vitbench status {_short(run.folder)}` says why",
            soft_wrap=True,
        )
    if merged.failed:
        printer.print(f"{merged.failed} cases failed; their rows say why", soft_wrap=True)
    return int(bool(merged.missing or merged.failed))


def status(given: StatusOptions) -> int:
    """Prints how far a run is; returns the exit code.

    Raises: InputError when the folder is none of a run.
    """
    run = folders.open_run(given.run)
    return _follow(run) if given.follow else 0 if follow.show(run, given) else 1


def merge_run(given: MergeOptions) -> int:
    """Writes a run's rows as one CSV; returns the exit code.

    Raises: InputError when the folder is none of a run, or there is no row.
    """
    run = folders.open_run(given.run)
    merged = merge(run, given.out or given.run / "merged.csv", given.together)
    if not merged.written:
        raise InputError(f"{given.run} has no row yet: `vitbench status {given.run}` says how far it is")
    return _tell(run, merged)


def _short(folder: Path) -> Path:
    """The folder as one would type it here."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


__all__ = ["bench", "merge_run", "status"]
