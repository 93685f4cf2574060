"""The command line: parse, call, print."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from vitbench.audit.options import AuditOptions
from vitbench.bench.options import BenchOptions, ListOptions, MaxBatchOptions, MemoryCurvesOptions, ReportOptions
from vitbench.certify.options import CertifyOptions
from vitbench.cluster.options import MergeOptions, StatusOptions
from vitbench.columns import Shown
from vitbench.doctor.options import DoctorOptions
from vitbench.errors import InputError
from vitbench.fuse_report.options import FuseReportOptions
from vitbench.gate.options import CompareOptions, GateOptions
from vitbench.memory.options import MemoryOptions
from vitbench.predict.options import PredictOptions, ValidatePredictionsOptions

Options = TypeVar("Options")


def _version(asked: bool) -> None:
    if asked:
        from vitbench import __version__

        print(f"vitbench {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="vitbench",
    help="""Measure vision transformers: throughput, latency, memory, energy, FLOPs.

A sweep is a grid of models x resolutions x batch sizes x implementations x dtypes x modes. Each case of
the grid runs in a worker process, is checked against eager PyTorch, is then timed, and ends as one row of
a CSV: a case that fails is a row too, with its reason. A sweep that was stopped goes on where it was.

\b
  vitbench list 'cmt_*'                           models and published figures
  vitbench doctor                                 what can be measured here
  vitbench bench --model cmt_s --dry-run          what would run, its memory
  vitbench bench --model cmt_s --batch 1,64       measure
  vitbench bench --executor slurm --out RUN       ... on a cluster; status RUN
  vitbench memory --model cmt_s --gpu 'RTX 4090'  what fits on a card not here
  vitbench predict --model cmt_s --gpu 'RTX 4090' images/s on a card not here
  vitbench fuse-report 'timm:swin*'               kernels in others' models
  vitbench memory-curves --model cmt_s,resnet50   memory over the batch
  vitbench report results/gpu/cmt_s.csv           print and draw a sweep again
  vitbench report results/*/*.csv --out report    all as a page and pictures
  vitbench certify --budget 540 --out DIR         what only a GPU can prove

Exit code: 0 every case ok or unsupported, 1 some case failed, 2 input that cannot be used, 130 interrupted.
""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _command(
    kind: type[Options], name: str = ""
) -> Callable[[Callable[[Options], int | None]], Callable[[Options], int | None]]:
    """Makes a function a command, whose options are the fields of the dataclass that it takes."""

    def register(run: Callable[[Options], int | None]) -> Callable[[Options], int | None]:
        def command(**given: Any) -> None:
            raise typer.Exit(run(kind(**given)) or 0)

        hints = get_type_hints(kind, include_extras=True)
        of_table = inspect.signature(Shown).parameters  # inherited, but said last
        fields = sorted(inspect.signature(kind).parameters.values(), key=lambda field: field.name in of_table)
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [field.replace(annotation=hints[field.name]) for field in fields]
        )
        command.__doc__ = run.__doc__
        app.command(name or run.__name__.replace("_", "-"))(command)
        return run

    return register


@_command(BenchOptions)
def bench(given: BenchOptions) -> int:
    """Measure a grid of cases: CSV, table and curves."""
    if given.dry_run:
        _end_at_once()
    if given.in_shards:
        from vitbench.cluster import command as in_shards

        return in_shards.bench(given)
    if not given.dry_run:
        from vitbench import warm
        from vitbench.process import python_environment

        warm.prepare("vitbench.bench.worker", python_environment())  # beside this process's own imports
    from vitbench.bench import command

    return command.bench(given)


@_command(StatusOptions)
def status(given: StatusOptions) -> int:
    """How far a run in shards is.

    From its folder alone, on any node. Exit code: 0, 1 where a shard has stopped, 2 bad input.
    """
    from vitbench.cluster import command

    return command.status(given)


@_command(MergeOptions)
def merge(given: MergeOptions) -> int:
    """The rows of a run in shards as one CSV.

    A CSV for each GPU type. Exit code: 0, 1 where cases failed or have no row yet, 2 bad input.
    """
    from vitbench.cluster import command

    return command.merge_run(given)


@_command(MemoryCurvesOptions)
def memory_curves(given: MemoryCurvesOptions) -> int:
    """Peak memory over the batch size, a curve a model.

    Written as CSV and picture.
    """
    from vitbench.bench import command

    return command.memory_curves(given)


@_command(MaxBatchOptions)
def max_batch(given: MaxBatchOptions) -> int:
    """The largest batch that this GPU holds, measured.

    By bisection, in processes that may die.
    """
    from vitbench.bench import max_batch

    return max_batch.run(given)


@_command(MemoryOptions)
def memory(given: MemoryOptions) -> int:
    """What a step takes on any card, without the card.

    Weights, gradients, activations, what fits, the largest batch: predicted from CUDA's own rules on tensors without
    data. Exit code: 0, 1 where a case has none, 2 bad input.
    """
    from vitbench.memory import command

    return command.run(given)


@_command(PredictOptions)
def predict(given: PredictOptions) -> int:
    """Images a second on any card, without the card.

    Fitted to timm's published measurements; how far off it is stands above the table. Eager inference at large batches.
    Exit code: 0, 1 where a model has no prediction, 2 bad input.
    """
    from vitbench.predict import command

    return command.run(given)


@_command(ValidatePredictionsOptions)
def validate_predictions(given: ValidatePredictionsOptions) -> int:
    """How far off the predictions in a GPU's sweep were.

    `bench` writes them beside what it measures.
    """
    from vitbench.predict import validate

    return validate.run(given)


@_command(ListOptions, "list")
def list_models(given: ListOptions) -> None:
    """The models: sizes, and what is published about each."""
    from vitbench.bench import listing

    listing.print_models(given)


@_command(FuseReportOptions)
def fuse_report(given: FuseReportOptions) -> int:
    """What vitkernels.fuse does to models of a library.

    Which modules run on kernels, which are left and why, and the share of multiply-accumulates that kernels compute;
    models have no weights here. Exit code: 0, 1 where a model cannot be built or counted, 2 bad input.
    """
    from vitbench.fuse_report import command

    return command.run(given)


@_command(DoctorOptions)
def doctor(given: DoctorOptions) -> int:
    """What this machine can measure, what not, and why.

    --deep tries it. Exit code: 0, or 1 where a trial failed.
    """
    from vitbench.doctor import command

    return command.run(given)


@_command(ReportOptions)
def report(given: ReportOptions) -> None:
    """Print and draw earlier sweeps again, or as a page.

    With --out: one page of all files, its pictures and a summary.
    """
    from vitbench.bench import command

    command.report(given)


@_command(CompareOptions)
def compare(given: CompareOptions) -> int:
    """Is NEW slower than BASE, or larger, or hungrier?

    Judged from the raw samples of time, memory and energy. A case is slower when the samples differ and the change
    passes the threshold; a case that is missing or fails in NEW counts as slower. Exit code: 0 no regression, 1 a
    regression, 2 not comparable or bad input.
    """
    from vitbench import columns
    from vitbench.gate import measurements, verdicts
    from vitbench.gate.compare import Comparison, compare, parse_thresholds

    columns.check(verdicts.table(Comparison([])), given)
    thresholds = parse_thresholds(given.threshold or [])
    base, new = measurements.load(given.base), measurements.load(given.new)
    result = compare(base, new, thresholds, given.cross_environment)
    verdicts.emit(result, given.markdown, given.json, given)
    return result.exit_code


@_command(GateOptions)
def gate(given: GateOptions) -> int:
    """Is this checkout slower than another commit?

    Both are benchmarked in turns on the GPU; without one, audited. Exit code: 0 no regression, 1 a regression, 2 not
    comparable or bad input.
    """
    from vitbench.gate import command

    return command.run(given)


@_command(AuditOptions)
def audit(given: AuditOptions) -> int:
    """Compile kernels for absent GPUs, model their time.

    Machine code is read and its time modelled; no GPU is needed. Exit code: 0 no regression, 1 a regression or a
    launch that fails, 2 not comparable or bad input.
    """
    from vitbench.audit import command

    return command.run(given)


@_command(CertifyOptions)
def certify(given: CertifyOptions) -> int:
    """Prove on a GPU what only a GPU can prove.

    That kernels are right and fast, models, power, memory, the audit's model. Writes CSV files and summary.md, which
    says pass, fail or not run for each line. The same command goes on where the last one ran out of time. Exit code:
    0 no line of these stages failed, 1 one did, 2 bad input, 130 interrupted.
    """
    from vitbench.certify import command

    return command.run(given)


def main() -> None:
    """The console script: bad input is one line on stderr and exit code 2; a cancelled job ends as by Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text, and not every terminal has every letter
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(prog_name="vitbench", standalone_mode=False)
    except InputError as error:
        code = _complain(str(error))
    except OSError as error:
        # A disk that fills up or a folder that vanishes: the rows so far are safe.
        code = _complain(f"{error.strerror or error}: {error.filename or 'while writing results'}")
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's own usage errors
            raise
        context = getattr(error, "ctx", None)
        named = [word for word in sys.argv[1:2] if not word.startswith("-")]  # the parser itself knows no context
        command = context.command_path if context else " ".join(["vitbench", *named])
        code = _complain(f"{error.format_message().rstrip('.')}; `{command} --help` says what there is")
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own end cannot be interrupted without a traceback
    sys.exit(code or 0)


def _end_at_once() -> None:
    """From here on SIGTERM and Ctrl-C end this process as they come: for what prints, and writes and starts nothing.

    An exception would be lost in a callback that a tensor's end calls, where a plan spends much of its time.
    """

    def end(number: int, frame: object) -> None:
        os._exit(130)  # every line that was printed is out: the console flushes each

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _complain(message: str) -> int:
    print("vitbench: " + " ".join(message.split()), file=sys.stderr)
    return 2
