"""Where a model's time goes on a card, kernel by kernel, and what would change it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vitbench import selection
from vitbench.cards import Card
from vitbench.catalog import format_resolution
from vitbench.columns import Column
from vitbench.errors import InputError
from vitbench.predict import ask
from vitbench.predict.calibration import Anchored
from vitbench.predict.forecast import forecast, kernel_seconds
from vitbench.predict.setting import Answer, Setting
from vitbench.predict.table import KINDS

#: What fused kernels can leave out: passes over memory between products.
_FUSIBLE = ("elementwise", "broadcast", "copy", "strided copy", "normalisation", "batch norm", "softmax")
_LARGER = 1.25


@dataclass(frozen=True)
class Explained:
    """What is predicted in one line; a row for each kind of kernel; what would change it, a line each."""

    head: str
    kernels: list[Column]
    others: list[str]


def table(found: Sequence[tuple[float, str, int, float, float]], total_s: float) -> list[Column]:
    """A row for each kind of kernel, from (seconds, kind, launches, bytes, multiply-accumulates)."""
    return [
        Column("kernel", [kind for _, kind, *_ in found], "key"),
        Column("launches", [count for _, _, count, *_ in found]),
        Column("GB", [moved / 1e9 for *_, moved, _ in found], show="{:.2f}".format),
        Column("GMACs", [macs / 1e9 for *_, macs in found], show="{:.1f}".format),
        Column("ms", [1e3 * time for time, *_ in found], show="{:.2f}".format),
        Column("share", [time / total_s for time, *_ in found], show="{:.1%}".format),
    ]


def explained(setting: Setting, card: Card, batch: int, factors: Anchored | None) -> Explained:
    """Launches, bytes, multiply-accumulates and time of each kind of kernel; then other layouts and sizes.

    Raises: InputError where the model cannot be traced.
    """
    answer = _answer(setting)
    made = forecast(answer, setting, card, batch, factors)
    times = kernel_seconds(answer.kernels, card, batch, factors, setting.impl)
    head = (
        f"{setting.model} at {format_resolution(setting.resolution)}, batch {batch}, {setting.dtype}, "
        f"{setting.layout}, {setting.impl} on {card.name}: {made.img_per_s:,.0f} images/s "
        f"({made.low:,.0f} to {made.high:,.0f}), {made.ms:.1f} ms"
    )
    found = []
    for kind in KINDS:
        chosen = [(k, count, time) for (k, count), time in zip(answer.kernels, times, strict=True) if k.kind == kind]
        if chosen:
            moved = sum(count * ((k.moved + k.beside) * batch + k.fixed) for k, count, _ in chosen)
            macs = sum(count * k.macs * batch for k, count, _ in chosen) if kind not in ("pooling", "resize") else 0.0
            found.append((sum(time for *_, time in chosen), kind, sum(count for _, count, _ in chosen), moved, macs))
    fusible = sum(time for time, kind, *_ in found if kind in _FUSIBLE)
    total = made.ms / 1e3
    others = [
        f"fused: at most {batch / (total - fusible):,.0f} images/s ({total / (total - fusible):.2f} x), if elementwise "
        "passes, copies, normalisations and softmax took no time",
        *(_changed(what, other, card, batch, factors, made.img_per_s) for what, other in _others(setting)),
        *([made.note] if made.note else []),
    ]
    return Explained(head, table(sorted(found, reverse=True), total), others)


def _answer(setting: Setting) -> Answer:
    answer = ask.ask(setting)
    if answer.reason:
        raise InputError(f"{setting.model} cannot be traced: {answer.reason}")
    return answer


def _others(setting: Setting) -> Iterator[tuple[str, Setting]]:
    impl = "compile" if setting.impl == "eager" else "eager"
    yield impl, replace(setting, impl=impl)
    layout = "nhwc" if setting.layout == "nchw" else "nchw"
    yield layout, replace(setting, layout=layout)
    size = selection.resolve(setting.model, f"x{_LARGER}")
    if size != setting.resolution:
        yield f"at {format_resolution(size)}", replace(setting, resolution=size)


def _changed(what: str, setting: Setting, card: Card, batch: int, factors: Anchored | None, before: float) -> str:
    answer = ask.ask(setting)
    if answer.reason:
        return f"{what}: cannot be traced: {answer.reason}"
    rate = forecast(answer, setting, card, batch, factors).img_per_s
    return f"{what}: {rate:,.0f} images/s ({rate / before:.2f} x)"


__all__ = ["Explained", "explained", "table"]
