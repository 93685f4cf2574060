"""Stage 5: power and joules an image, in power.csv."""

from __future__ import annotations

from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.certify import sweeping
from vitbench.certify.stage import NOT_RUN, Context, Line, Stage, verdict
from vitbench.measure import power
from vitbench.results.row import Energy

_FILE = "power.csv"
_MODELS = ("cmt_s", "coatnet_0", "vit_base_patch16_224", "resnet50")


def cases(context: Context) -> list[Case]:
    """Inference of all, then training; each is worth 5 s of work and the build."""
    if context.small:
        return [Case("resnet18", "eager", "infer", "fp32", "nhwc", (32, 32), 1, "cpu")]
    return [
        Case(model, impl, mode, "bf16", "nhwc", (224, 224), 64, "cuda")
        for mode in ("infer", "train")
        for model in _MODELS
        for impl in (("eager", "fused") if model in ("cmt_s", "coatnet_0") else ("eager",))
    ]


def _run(context: Context, deadline: float) -> bool:
    least, most = (0.02, 0.1) if context.small else (0.2, 1.0)
    options = SweepOptions(min_time=least, max_time=most, passes=("latency", "energy"))
    return sweeping.measure(cases(context), context.out / _FILE, options, deadline)


def _judge(context: Context) -> list[Line]:
    rows = sweeping.rows_of(context, _FILE)
    lines = []
    for case in cases(context):
        row, what = rows.get(case.id), f"{case.id}: power is measured"
        if row is None or row.status in ("unsupported", "oom"):
            lines.append(Line(what, NOT_RUN, sweeping.absence(case, rows)))
        elif row.energy.energy_source == "none":
            lines.append(Line(what, NOT_RUN, f"no energy counter: {power.find(context.device)[1]}"))
        else:
            lines.append(_judge_energy(what, row.energy) or Line(what, verdict(False), sweeping.absence(case, rows)))
    return lines


def _judge_energy(what: str, found: Energy) -> Line | None:
    """None where something was not measured."""
    if found.energy_j_per_img is None or found.energy_net_j_per_img is None or found.avg_power_w is None:
        return None
    told = (
        f"{found.avg_power_w:,.0f} W (idle {found.idle_power_w or 0:,.0f} W), "
        f"{found.energy_j_per_img:.4g} J an image, {found.energy_net_j_per_img:.4g} J net of idle"
    )
    return Line(what, verdict(found.energy_j_per_img > 0), told)


STAGE = Stage("power", "power and joules an image", 8, _run, _judge)
__all__ = ["STAGE", "cases"]
