"""Stage 4: whole models under every implementation, in models.csv; the first groups are those of the stated aims."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.catalog import Resolution
from vitbench.certify import sweeping
from vitbench.certify.stage import NOT_RUN, Context, Line, Stage, verdict
from vitbench.results.row import Row

#: Throughput over torch.compile's that is aimed at, bf16, batch 64, 224 px.
AIMS = {"infer": 1.5, "train": 1.2}
AIMED = ("cmt_s", "coatnet_0")
MODELS = (
    *AIMED,
    "convmixer_768_32",
    "convit_small",
    "timm:swin_tiny_patch4_window7_224",
    "vit_base_patch16_224",
    "resnet50",
    "efficientnet_b0",
)
#: What is timed together. A group is lost when the time ends within it and compiling takes most of it, so that none
#: has two that compile.
FIRST = ("eager", "compile", "fused")
AIMED_TOO = ("fused+compile",)
REST = (AIMED_TOO, ("sdpa", "flex"), ("max-autotune",))
_SHAPES = ((224, 64), (224, 1), (384, 64), (224, 256), (384, 1), (384, 256))
_FILE = "models.csv"


def _size(model: str, side: int) -> Resolution:
    if model.startswith("convmixer"):  # patches of 7 px
        side = round(side / 7) * 7
    return side, side


def _group(model: str, impls: tuple[str, ...], mode: str, side: int, batch: int) -> list[Case]:
    return [Case(model, impl, mode, "bf16", "nhwc", _size(model, side), batch, "cuda") for impl in impls]


def cases(context: Context) -> list[Case]:
    """What is to be measured, most valuable first."""
    return list(dict.fromkeys(_small() if context.small else _full()))


def _full() -> Iterator[Case]:
    tiers: tuple[tuple[tuple[str, ...], ...], ...] = ((FIRST,), REST)
    for impls in (*tiers[0], AIMED_TOO):
        for mode in AIMS:
            for model in AIMED:
                yield from _group(model, impls, mode, 224, 64)
    for groups in tiers:
        for (side, batch), mode, model, impls in itertools.product(_SHAPES, AIMS, MODELS, groups):
            yield from _group(model, impls, mode, side, batch)


def _small() -> Iterator[Case]:
    for model, impls, modes in (
        ("convit_tiny", ("eager", "sdpa", "fused"), AIMS),
        ("timm:convnext_atto", ("eager", "fused"), ("infer",)),
    ):
        for mode, impl in itertools.product(modes, impls):
            yield Case(model, impl, mode, "fp32", "nhwc", (32, 32), 2, "cpu")


def _run(context: Context, deadline: float) -> bool:
    least, most = (0.02, 0.1) if context.small else (0.5, 3.0)
    options = SweepOptions(min_time=least, max_time=most, passes=("latency", "memory"))
    return sweeping.measure(cases(context), context.out / _FILE, options, deadline)


def _judge(context: Context) -> list[Line]:
    rows = sweeping.rows_of(context, _FILE)
    lines = [_aim(model, mode, rows, context) for model in AIMED for mode in AIMS]
    planned = cases(context)
    return lines + [
        sweeping.progress_line(
            f"{model}: every implementation right, or out of memory or unsupported with a reason",
            [case for case in planned if case.model == model],
            rows,
        )
        for model in dict.fromkeys(case.model for case in planned)
    ]


def _aim(model: str, mode: str, rows: dict[str, Row], context: Context) -> Line:
    what = f"{model} {mode}, bf16, batch 64, 224 px: at least {AIMS[mode]}x the throughput of torch.compile"
    if context.small:
        return Line(what, NOT_RUN, "speed needs an NVIDIA GPU")
    (compiled,) = _group(model, ("compile",), mode, 224, 64)
    ours = _group(model, ("fused", *AIMED_TOO), mode, 224, 64)
    rate = {case.impl: _rate(rows.get(case.id)) for case in (compiled, *ours)}
    best = max((case for case in ours if rate[case.impl]), key=lambda case: rate[case.impl], default=None)
    if best is None or not rate["compile"]:
        return Line(what, NOT_RUN, sweeping.absence(compiled if best else ours[0], rows))
    ratio = rate[best.impl] / rate["compile"]
    told = ", ".join(f"{impl} {value:,.0f} img/s" for impl, value in rate.items() if value)
    eager = _rate(rows.get(_group(model, ("eager",), mode, 224, 64)[0].id))
    told += f", eager {eager:,.0f} img/s" if eager else ""
    return Line(what, verdict(ratio >= AIMS[mode]), f"{ratio:.2f}x by {best.impl}: {told}")


def _rate(row: Row | None) -> float:
    if row is None or row.status != "ok" or row.health.valid is False:
        return 0.0
    return row.speed.img_per_s or 0.0


STAGE = Stage("models", "whole models under every implementation", 35, _run, _judge)
__all__ = ["STAGE", "cases"]
