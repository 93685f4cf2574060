"""Where a model's time goes on a card, kernel by kernel, and what would change it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vitbench import selection
from vitbench.cards import Card
from vitbench.catalog import format_resolution
from vitbench.errors import InputError
from vitbench.predict import ask
from vitbench.predict.forecast import forecast, kernel_seconds
from vitbench.predict.setting import Answer, Setting
from vitbench.predict.table import KINDS

#: What fused kernels can leave out: passes over memory between products.
_FUSIBLE = ("elementwise", "broadcast", "copy", "strided copy", "normalisation", "batch norm", "softmax")
_LARGER = 1.25


def lines(setting: Setting, card: Card, batch: int, factors: tuple[float, float] | None) -> Iterator[str]:
    """A line for each kind of kernel: launches, bytes, multiply-accumulates, time; then other layouts and sizes.

    Raises: InputError where the model cannot be traced.
    """
    answer = _answer(setting)
    made = forecast(answer, setting, card, batch, factors)
    times = kernel_seconds(answer.kernels, card, batch, factors)
    yield (
        f"{setting.model} at {format_resolution(setting.resolution)}, batch {batch}, {setting.dtype}, {setting.layout} "
        f"on {card.name}: {made.img_per_s:,.0f} images/s ({made.low:,.0f} to {made.high:,.0f}), {made.ms:.1f} ms"
    )
    yield f"{'kernel':26} {'launches':>8} {'GB':>8} {'GMACs':>9} {'ms':>8} {'share':>6}"
    found = []
    for kind in KINDS:
        chosen = [(k, count, time) for (k, count), time in zip(answer.kernels, times, strict=True) if k.kind == kind]
        if chosen:
            moved = sum(count * ((k.moved + k.beside) * batch + k.fixed) for k, count, _ in chosen)
            macs = sum(count * k.macs * batch for k, count, _ in chosen) if kind not in ("pooling", "resize") else 0.0
            found.append((sum(time for *_, time in chosen), kind, sum(count for _, count, _ in chosen), moved, macs))
    for time, kind, count, moved, macs in sorted(found, reverse=True):
        share = 1e3 * time / made.ms
        yield f"{kind:26} {count:8} {moved / 1e9:8.2f} {macs / 1e9:9.1f} {1e3 * time:8.2f} {share:6.1%}"
    fusible = sum(time for time, kind, *_ in found if kind in _FUSIBLE)
    total = made.ms / 1e3
    yield (
        f"fused: at most {batch / (total - fusible):,.0f} images/s ({total / (total - fusible):.2f} x), if elementwise "
        "passes, copies, normalisations and softmax took no time"
    )
    for what, other in _others(setting):
        yield _changed(what, other, card, batch, factors, made.img_per_s)
    if made.note:
        yield made.note


def _answer(setting: Setting) -> Answer:
    answer = ask.ask(setting)
    if answer.reason:
        raise InputError(f"{setting.model} cannot be traced: {answer.reason}")
    return answer


def _others(setting: Setting) -> Iterator[tuple[str, Setting]]:
    layout = "nhwc" if setting.layout == "nchw" else "nchw"
    yield layout, replace(setting, layout=layout)
    size = selection.resolve(setting.model, f"x{_LARGER}")
    if size != setting.resolution:
        yield f"at {format_resolution(size)}", replace(setting, resolution=size)


def _changed(
    what: str, setting: Setting, card: Card, batch: int, factors: tuple[float, float] | None, before: float
) -> str:
    answer = ask.ask(setting)
    if answer.reason:
        return f"{what}: cannot be traced: {answer.reason}"
    rate = forecast(answer, setting, card, batch, factors).img_per_s
    return f"{what}: {rate:,.0f} images/s ({rate / before:.2f} x)"


__all__ = ["lines"]
