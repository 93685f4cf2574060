"""Stage 6: peak memory over the batch size, measured beside predicted, and what fusion saves; in memory.csv."""

from __future__ import annotations

from dataclasses import replace

from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.certify import sweeping
from vitbench.certify.stage import NOT_RUN, Context, Line, Stage, verdict
from vitbench.report import curves
from vitbench.results.row import Memory, Row

#: How far a prediction may be off the measurement, as a share of it.
TOLERANCE = 0.05
_FILE = "memory.csv"


def curve_cases(context: Context) -> list[list[Case]]:
    """One list a curve, batches ascending; on a GPU up to what no card of today holds."""
    if context.small:
        models, side, batches, dtype = ("vit_tiny_patch16_224", "resnet18"), 64, [1, 2], "fp32"
    else:
        models, side, dtype = ("vit_base_patch16_224", "resnet50"), 224, "bf16"
        batches = [1, 4, 16, 64, 128, 256, 512, 1024, 2048]
    return [
        [Case(model, "eager", mode, dtype, "nchw", (side, side), batch, context.device) for batch in batches]
        for mode in (("train",) if context.small else ("train", "infer"))
        for model in models
    ]


def fused_cases(context: Context) -> list[Case]:
    """Eager's training at 384 px, to hold fused's against; the CPU's share of it is a prediction."""
    if context.small:
        return [Case("efficientnet_b0", "eager", "train", "fp32", "nhwc", (64, 64), 2, "cpu")]
    return [Case(model, "eager", "train", "bf16", "nhwc", (384, 384), 32, "cuda") for model in ("cmt_s", "coatnet_0")]


def _run(context: Context, deadline: float) -> bool:
    cases = [case for eager in fused_cases(context) for case in (eager, replace(eager, impl="fused"))]
    cases += [case for curve in curve_cases(context) for case in curve]
    path = context.out / _FILE
    interrupted = sweeping.measure(cases, path, SweepOptions(passes=("memory",)), deadline)
    curve_ids = {case.id for curve in curve_cases(context) for case in curve}
    drawn = [row for row in sweeping.rows_of(context, _FILE).values() if row.case in curve_ids]
    if drawn and not curves.plotting_missing() and (chart := curves.memory_chart(drawn)) is not None:
        curves.save(chart, path.with_suffix(""))
    return interrupted


def _judge(context: Context) -> list[Line]:
    rows = sweeping.rows_of(context, _FILE)
    lines = []
    for curve in curve_cases(context):
        name = f"{curve[0].model} {curve[0].mode} {curve[0].dtype}"
        lines += [_judge_prediction(name, curve, rows), _judge_largest(name, curve, rows)]
    return lines + [_judge_saving(eager, rows) for eager in fused_cases(context)]


def _judge_prediction(name: str, curve: list[Case], rows: dict[str, Row]) -> Line:
    what = f"{name}: peak memory is predicted within {TOLERANCE:.0%} of the measured"
    off = {
        row.batch: row.memory.predicted_mem_mib / row.memory.peak_mem_mib - 1
        for case in curve
        if (row := rows.get(case.id)) and row.memory.peak_mem_mib and row.memory.predicted_mem_mib
    }
    if not off:
        return Line(what, NOT_RUN, sweeping.absence(curve[0], rows))
    worst = max(off, key=lambda batch: abs(off[batch]))
    told = f"at batches {', '.join(map(str, off))}; farthest off {off[worst]:+.2%} at batch {worst}"
    return Line(what, verdict(abs(off[worst]) <= TOLERANCE), told)


def _judge_largest(name: str, curve: list[Case], rows: dict[str, Row]) -> Line:
    what = f"{name}: the largest batch that fits"
    done = [rows[case.id] for case in curve if case.id in rows]
    fits = [row.batch for row in done if row.status == "ok"]
    not_fit = [row.batch for row in done if row.status == "oom"]
    wrong = next((row for row in done if row.status not in ("ok", "oom")), None)
    if wrong is not None:
        return Line(what, verdict(False), f"{wrong.case} is {wrong.status}: {wrong.reason}")
    if len(done) < len(curve) and not not_fit:
        return Line(what, NOT_RUN, f"{len(done)} of {len(curve)} batch sizes tried")
    found = f"{max(fits)}" if fits else "none"
    return Line(
        what, verdict(bool(fits)), f"{found}; {min(not_fit)} runs out of memory" if not_fit else f"{found} or more"
    )


def _judge_saving(eager: Case, rows: dict[str, Row]) -> Line:
    what = f"{eager.model} train at {eager.resolution[0]} px, batch {eager.batch}: fused needs less memory than eager"
    fused = replace(eager, impl="fused")
    before, after = (rows[case.id].memory if case.id in rows else Memory() for case in (eager, fused))
    if not before.predicted_mem_mib or not after.predicted_mem_mib:
        return Line(what, NOT_RUN, sweeping.absence(fused if before.predicted_mem_mib else eager, rows))
    ratios = [after.predicted_mem_mib / before.predicted_mem_mib]
    told = f"predicted {after.predicted_mem_mib:,.0f} MiB of {before.predicted_mem_mib:,.0f} MiB, {ratios[0]:.0%}"
    if before.peak_mem_mib and after.peak_mem_mib:
        ratios.append(after.peak_mem_mib / before.peak_mem_mib)
        told += f"; measured {after.peak_mem_mib:,.0f} MiB of {before.peak_mem_mib:,.0f} MiB, {ratios[1]:.0%}"
    else:
        told += "; not measured"
    return Line(what, verdict(max(ratios) < 1), told)


STAGE = Stage("memory", "peak memory, measured beside predicted", 7, _run, _judge)
__all__ = ["STAGE", "TOLERANCE", "curve_cases", "fused_cases"]
