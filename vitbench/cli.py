"""The command line: parse, call, print."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from vitbench.errors import InputError

app = typer.Typer(
    name="vitbench",
    help="""Measure vision transformers: throughput, latency, memory, energy, FLOPs.

A sweep is a grid of models x resolutions x batch sizes x implementations x dtypes x modes. Each case of
the grid runs in a worker process, is checked against eager PyTorch, is then timed, and ends as one row of
a CSV: a case that fails is a row too, with its reason. A sweep that was stopped goes on where it was.

\b
  vitbench list 'cmt_*'                                   what there is, and what is published about it
  vitbench doctor                                         what this machine can measure, and what not
  vitbench bench --model cmt_s --dry-run                  what would run: parameters, GMACs, memory
  vitbench bench --model cmt_s,resnet50 --batch 1,64      measure
  vitbench memory-curves --model vit_base_patch16_224,resnet50
  vitbench report results/gpu/cmt_s.csv                   print and draw an earlier sweep again
  vitbench certify --budget 540 --out DIR                 all that only a GPU can prove, pass or fail a line

Exit code: 0 every case ok or unsupported, 1 some case failed, 2 input that cannot be used, 130 interrupted.
""",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Names or wildcards, separated by commas; `all` is every model.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="The CSV to write. Default: results/<device>/<models>.csv.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N. Default: cuda where there is a GPU.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Begin anew although the CSV exists; the old file is renamed, not lost.")
]
TimeLimitOption = Annotated[float, typer.Option(help="Seconds one case may take, compilation included.")]
ExportOption = Annotated[str, typer.Option("--export", help="Also write the rows in another tool's format: timm.")]
BaselineOption = Annotated[
    Path | None, typer.Option(help="A vitbench or timm CSV; the table shows the throughput over it.")
]


@app.command()
def bench(
    model: ModelOption = "vit_base_patch16_224,resnet50,cmt_s",
    resolution: Annotated[
        str,
        typer.Option(help="Sizes such as 224 or 800x1066, `native`, or factors of it such as x1.5. Default by device."),
    ] = "",
    batch: Annotated[str, typer.Option(help="Batch sizes. Default by device.")] = "",
    impl: Annotated[
        str, typer.Option(help="eager, sdpa, flex, compile, max-autotune, fused, fused+compile. Default by device.")
    ] = "",
    dtype: Annotated[str, typer.Option(help="fp32, tf32, bf16, fp16, amp (fp32 weights, bf16 autocast).")] = "fp32",
    mode: Annotated[str, typer.Option(help="infer, train (forward, backward, AdamW step).")] = "infer",
    layout: Annotated[str, typer.Option(help="nchw, nhwc (channels_last).")] = "nchw",
    device: DeviceOption = "",
    out: OutOption = None,
    time_limit: TimeLimitOption = 600.0,
    min_time: Annotated[float, typer.Option(help="Seconds of samples each case gets at least.")] = 0.5,
    max_time: Annotated[
        float | None,
        typer.Option(help="Seconds of samples each case gets at most. Default: 15 on a GPU, 2 on a CPU."),
    ] = None,
    images: Annotated[str, typer.Option(help="A folder of photographs to feed in. Default: seeded normal noise.")] = "",
    weights: Annotated[str, typer.Option(help="A .safetensors file for the one model. Default: seeded random.")] = "",
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Record each step as a CUDA graph and time its replay: no launch costs.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the cases with parameters, GMACs and predicted memory; measure nothing."),
    ] = False,
    fresh: FreshOption = False,
    export: ExportOption = "",
    baseline: BaselineOption = None,
) -> None:
    """Measure a grid of cases into a CSV, print its table and draw its curves."""
    from vitbench.bench import command as session

    cases = session.plan(model, resolution, batch, impl, dtype, mode, layout, device)
    if dry_run:
        session.print_plan(cases)
        return
    options = session.options(cases, time_limit, min_time, max_time, images, weights, fresh, graphs)
    raise typer.Exit(session.bench(cases, out or session.default_out(model, cases), options, export, baseline))


@app.command("memory-curves")
def memory_curves(
    model: ModelOption = "vit_base_patch16_224,resnet50",
    resolution: Annotated[str, typer.Option(help="As for bench.")] = "native",
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1,2,4,8,16,32,64,128,256",
    dtype: Annotated[str, typer.Option(help="As for bench.")] = "fp32",
    mode: Annotated[str, typer.Option(help="infer, train.")] = "infer,train",
    measure_up_to: Annotated[
        int,
        typer.Option(help="The largest batch that is measured beside predicted. Default: 4 on the CPU, all on a GPU."),
    ] = -1,
    device: DeviceOption = "",
    out: OutOption = None,
    time_limit: TimeLimitOption = 600.0,
    fresh: FreshOption = False,
) -> None:
    """Peak memory over the batch size, predicted and measured, as CSV and picture."""
    from vitbench.bench import command as session

    cases = session.plan(model, resolution, batch, "eager", dtype, mode, "nchw", device)
    out = out or session.default_out(f"memory-{model}", cases)
    raise typer.Exit(session.memory_curves(cases, out, measure_up_to, time_limit, fresh))


@app.command("list")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Names or wildcards, separated by commas.")] = "all",
    format: Annotated[str, typer.Option(help="table, csv or json.")] = "table",
) -> None:
    """The models: size, resolution and what is published about each."""
    from vitbench.bench import listing

    listing.print_models(pattern, format)


@app.command()
def doctor() -> None:
    """What this machine can measure, what not, and why."""
    from vitbench.measure import doctor

    doctor.print_report()


@app.command()
def report(
    csv: Annotated[Path, typer.Argument(help="A CSV that bench or memory-curves wrote.")],
    export: ExportOption = "",
    baseline: BaselineOption = None,
) -> None:
    """Print the table of an earlier sweep and draw its curves again."""
    from vitbench.bench import command as session

    session.report(csv, export, baseline)


ThresholdOption = Annotated[
    list[str] | None,
    typer.Option(help="What matters: 5% for all (the default), 'attention*=3%' for what matches. May be repeated."),
]
MarkdownOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write Markdown for a pull request; - prints it instead.")
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write JSON; - prints it instead.")
]


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="A vitbench CSV or a pytest-benchmark JSON.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The same kind of file, measured later.")],
    threshold: ThresholdOption = None,
    markdown: MarkdownOption = None,
    json: JsonOption = None,
    cross_environment: Annotated[
        bool, typer.Option("--cross-environment", help="Compare although GPU, driver, torch or triton differ.")
    ] = False,
) -> None:
    """Is NEW slower than BASE, or does it take more memory or energy? Judged from the raw samples.

    A case is slower when the samples differ and the change passes the threshold; a case that is missing or fails in NEW
    counts as slower. Exit code: 0 no regression, 1 a regression, 2 not comparable or bad input.
    """
    from vitbench.gate import measurements, verdicts
    from vitbench.gate.compare import compare, parse_thresholds

    thresholds = parse_thresholds(threshold or [])
    result = compare(measurements.load(base), measurements.load(new), thresholds, cross_environment)
    verdicts.emit(result, markdown, json)
    raise typer.Exit(result.exit_code)


@app.command()
def gate(
    against: Annotated[str, typer.Option(metavar="REF", help="The commit, branch or tag to compare with.")] = "",
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead: a benchmark JSON that this same machine wrote earlier."),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="cpu or cuda: measure there. Default: cuda where there is a GPU, else audit machine code."),
    ] = "",
    rounds: Annotated[int, typer.Option(help="How often each commit's benchmarks are run.")] = 2,
    benchmarks: Annotated[
        Path, typer.Option(metavar="PATH", help="What to measure: any pytest-benchmark file or folder of the checkout.")
    ] = Path("tests/vitkernels/bench_kernels.py"),
    threshold: ThresholdOption = None,
    markdown: MarkdownOption = None,
    json: JsonOption = None,
    kernel: Annotated[str, typer.Option(help="Without a GPU: which launches to audit, as for audit.")] = "*",
    arch: Annotated[str, typer.Option(help="Without a GPU: architectures, as for audit.")] = "sm_80,sm_90,sm_100",
    kernels: Annotated[str, typer.Option(help="Without a GPU: where kernels are registered.")] = "vitkernels",
) -> None:
    """Is this checkout slower than another commit? Both are benchmarked in turns on the GPU; without one, audited.

    Exit code: 0 no regression, 1 a regression, 2 not comparable or bad input.
    """
    from vitbench.gate.command import run

    audited = ["--kernel", kernel, "--arch", arch, "--kernels", kernels]
    raise typer.Exit(run(against, baseline, device, rounds, threshold or [], markdown, json, audited, benchmarks))


@app.command()
def audit(
    kernel: Annotated[
        str, typer.Option(help="Launches: wildcards on kernel/case/pass/dtype, or parts of it, separated by commas.")
    ] = "*",
    arch: Annotated[
        str, typer.Option(help="Architectures to compile for. Default: the card's, or sm_80,sm_90,sm_100.")
    ] = "",
    card: Annotated[
        str, typer.Option(help="Model the time on this card, such as 'RTX 4090'; `list` prints all that are known.")
    ] = "",
    kernels: Annotated[
        str, typer.Option(help="Where kernels are registered: modules, packages or .py files, separated by commas.")
    ] = "vitkernels",
    show: Annotated[
        str, typer.Option(metavar="CASE", help="Print resources, top costs, advice and hot loop of what matches.")
    ] = "",
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="Also write the rows.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Earlier audit, a CSV or a folder of them: print what moved, exit 1 if slower.")
    ] = None,
    accept: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write this audit as the new baseline.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --baseline: what moved, as Markdown.")
    ] = None,
    validate: Annotated[
        Path | None,
        typer.Option(metavar="RESULTS", help="Measured kernels, CSV or JSON: how well the model ranks them."),
    ] = None,
    compile_only: Annotated[
        bool,
        typer.Option(
            "--compile-only", help="Only check that all compile, without spills, to --baseline's matrix instruction."
        ),
    ] = False,
    part: Annotated[
        str, typer.Option(metavar="K/N", help="With --compile-only: the K-th of N parts of the launches.")
    ] = "1/1",
    processes: Annotated[int, typer.Option(help="Compiling processes. Default: the number of CPUs.")] = 0,
    triton: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Compile with the triton package in this folder.")
    ] = None,
) -> None:
    """Compile kernels for GPUs that are not here, read the machine code, model the time. No GPU needed.

    Exit code: 0 no regression, 1 a regression or a launch that fails, 2 not comparable or bad input.
    """
    from vitbench.audit import command

    raise typer.Exit(
        command.run(
            command.Options(
                kernels=kernels,
                pattern=kernel,
                arch=arch,
                card=card,
                processes=processes,
                triton=triton,
                compile_only=compile_only,
                part=command.parse_part(part),
                shown=show,
                out=out,
                against=baseline,
                accepted=accept,
                markdown=markdown,
                measured=validate,
            )
        )
    )


@app.command()
def certify(
    budget: Annotated[float, typer.Option(help="Seconds this call may take, over all stages.")] = 540.0,
    stage: Annotated[
        str, typer.Option(help="correctness, kernels, models, power, memory, prediction, or all; commas between.")
    ] = "all",
    device: Annotated[
        str, typer.Option(help="cuda, or cpu for a small rehearsal. Default: cuda if there is one.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write. Default: results/<device>/certify.")
    ] = None,
) -> None:
    """Prove on a GPU what only a GPU can prove: kernels right and fast, models, power, memory, the audit's model.

    Writes CSV files and summary.md, which says pass, fail or not run for each line. The same command goes on where the
    last one ran out of time. Exit code: 0 no line of these stages failed, 1 one did, 2 bad input, 130 interrupted.
    """
    from vitbench.certify import command

    raise typer.Exit(command.run(budget, stage, out, device))


def main() -> None:
    """The console script: bad input is one line on stderr and exit code 2; a cancelled job ends as by Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
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
        code = _complain(error.format_message())
    sys.exit(code or 0)


def _complain(message: str) -> int:
    print("vitbench: " + " ".join(message.split()), file=sys.stderr)
    return 2
