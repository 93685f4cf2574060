"""Finds out what `predict` is asked: traces a step at few batches, and from that knows it at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn

from vitbench.errors import InputError, Unsupported
from vitbench.memory import largest, store
from vitbench.memory.allocator import OutOfMemory
from vitbench.memory.recording import PRIME, Recording, exact, fit, guess
from vitbench.memory.setting import KINDS, Limit, Setting
from vitbench.memory.store import is_known
from vitbench.memory.work import Storages, Trace, Training, Work, build, of_images, of_images_and_labels
from vitbench.models import spec_of, unserved
from vitbench.ops.bundle import EAGER, SDPA
from vitbench.ops.implementations import ops_for
from vitbench.ops.names import COMPILED
from vitbench.trace import compiler
from vitbench.trace.precision import AUTOCAST, TORCH_DTYPES

#: A trace beside those that a recording is made of, where the first attempt was wrong.
_THIRD = 12


def work_of(setting: Setting, batch: int) -> Work:
    """The step of a setting at one batch."""
    spec = spec_of(setting.model, setting.variant)
    dtype = TORCH_DTYPES[setting.dtype]
    training = None
    if setting.mode == "train":
        training = Training(
            setting.optimizer,
            ddp=setting.ddp,
            bucket_view=setting.bucket_view,
            ema=setting.ema,
            checkpointing=setting.checkpointing,
        )

    def inputs() -> tuple[torch.Tensor, ...]:
        layout = torch.channels_last if setting.layout == "nhwc" else torch.contiguous_format
        x = torch.empty(batch, 3, *setting.resolution, dtype=dtype, memory_format=layout)
        return (x,) if training is None else (x, torch.empty(batch, dtype=torch.long))

    return Work(
        build=lambda: spec.build(ops_for(setting.impl), setting.resolution, spec.num_classes),
        inputs=inputs,
        call=of_images if training is None else of_images_and_labels,
        training=training,
        dtype=dtype,
        autocast=AUTOCAST.get(setting.dtype),
        channels_last=setting.layout == "nhwc",
        cudnn=setting.cudnn,
    )


def _model(setting: Setting) -> nn.Module:
    return _built(Setting(setting.model, setting.resolution, "infer", "fp32", setting.impl, variant=setting.variant))


@lru_cache(maxsize=2)
def _built(setting: Setting) -> nn.Module:
    """Kept for the next setting, of another mode, dtype or layout."""
    return build(work_of(setting, 1))


class Traces:
    """Recordings of one setting, traced when they are asked for; the model is built once."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._exact: dict[int, Recording] = {}
        self._traced: dict[int, Storages] = {}
        self.verified: list[int] = []
        self._affine = True

    @cached_property
    def _trace(self) -> Trace:
        return Trace(work_of(self._setting, 1), _model(self._setting))

    def storages(self, batch: int) -> Storages:
        if batch not in self._traced:
            self._traced[batch] = self._trace.storages(work_of(self._setting, batch).inputs)
        return self._traced[batch]

    @cached_property
    def general(self) -> Recording:
        return guess(self.storages(PRIME), PRIME)

    def verify(self, batch: int) -> None:
        """Holds the general recording against a trace; where it is wrong, makes it of both and tries another."""
        if batch < 2 or batch in self.verified or not self._affine:
            return
        found = self.storages(batch)
        if not self.general.equals(found, batch):
            other = fit(self.storages(PRIME), PRIME, found, batch)
            third = _THIRD if batch != _THIRD else 2 * _THIRD
            if other is None or not other.equals(self.storages(third), third):
                self._affine = False
                return
            self.general = other
            self.verified.append(third)
        self.verified.append(batch)

    def at(self, batch: int) -> Recording:
        """A recording that is right for this batch: one image alone often takes other paths than several."""
        if batch > 1 and self._affine:
            return self.general
        if batch not in self._exact:
            self._exact[batch] = exact(self.storages(batch))
        return self._exact[batch]


@lru_cache(maxsize=1)
def _traces(setting: Setting) -> Traces:
    """Kept for the next question about the same setting, which other cards ask."""
    return Traces(setting)


def more(
    setting: Setting, kept: dict[str, Any], batches: Sequence[int], workspace: int, limits: Sequence[Limit]
) -> dict[str, Any]:
    """What is known of a setting, and what is asked besides."""
    try:
        if why := cannot(setting):
            return {"reason": why}
        if (same := _canonical(setting)) != setting:
            found = more(same, store.read(same), batches, workspace, limits)
            store.write(same, found)
            return found
        if is_known(kept, batches, workspace, limits):
            return kept
        return compiler.retried(lambda: _more(_traces(setting), kept, batches, workspace, limits))
    except InputError:
        raise
    except Unsupported as error:
        return {"reason": str(error)}
    except Exception as error:  # a model's own code, on tensors without data
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {
            "reason": f"cannot be predicted: {type(error).__name__}: {lines[0][:200] if lines else ''}".rstrip(": ")
        }


def _canonical(setting: Setting) -> Setting:
    """The setting of which this one is a repetition: where nothing of a model is ours to implement, all are eager."""
    if setting.impl != "sdpa":
        return setting
    model = _model(setting)
    eager = vars(EAGER)
    ours = {id(operation) for name, operation in vars(SDPA).items() if operation is not eager[name]} | {id(SDPA)}
    used = any(id(value) in ours for module in model.modules() for value in vars(module).values())
    return setting if used else replace(setting, impl="eager")


def cannot(setting: Setting) -> str:
    """Why a setting has no prediction; "" where it has one."""
    if setting.impl in COMPILED:
        return f"what {setting.impl} allocates only the compiler knows"
    try:
        why = unserved(setting.model, setting.impl, setting.resolution, setting.variant)
    except (ValueError, Unsupported) as error:
        return str(error).splitlines()[0]
    return f"no {setting.impl} implementation: {why}" if why else ""


def _more(
    traces: Traces, kept: dict[str, Any], batches: Sequence[int], workspace: int, limits: Sequence[Limit]
) -> dict[str, Any]:
    peaks, most, fits = (dict(kept.get(name, {})) for name in ("peaks", "largest", "fits"))
    affine = bool(limits) or sum(batch > 1 for batch in batches) > 2
    for limit in limits[:1]:
        most[limit.key] = _largest(traces, limit)
    if affine:
        traces.verify(_rung(max([*(most[limit.key] for limit in limits[:1]), *batches], default=2)))
        for limit in limits[:1]:
            if not traces.verified:  # each batch is traced for itself
                most[limit.key] = _settle(traces, limit, most[limit.key])
    for batch in batches:
        recording = traces.at(batch) if affine else exact(traces.storages(batch))
        peaks[f"{batch}/{workspace}"] = peak = _peak(recording, batch, workspace)
        for limit in limits:
            # What was reserved without a limit is reserved in the same order within one that is no smaller.
            enough = limit.workspace == workspace and sum(peak) <= limit.capacity
            fits[f"{batch}/{limit.key}"] = enough or _fits(recording, batch, limit)
    some = traces.at(batches[0]) if batches else traces.general
    return {
        "peaks": peaks,
        "largest": most,
        "fits": fits,
        "convolutions": some.convolutions,
        "recurrent": some.recurrent,
        "verified": sorted({*kept.get("verified", []), *traces.verified}),
    }


def _rung(batch: int) -> int:
    """The least of few batches that is not below another: settings of a model then share what is known of shapes."""
    rung = 64
    while rung < batch:
        rung *= 8
    return rung


def _peak(recording: Recording, batch: int, workspace: int) -> list[int]:
    """Bytes of each kind, activations with what rounding takes, and of the workspace and the cache."""
    needed = workspace if recording.products else 0
    parts = recording.parts(batch)
    peak = recording.replay(batch, needed)
    known = [parts[kind] for kind in KINDS[:-1]]
    return [*known, peak.allocated - sum(known) - needed, needed, peak.reserved - peak.allocated]


def _could(recording: Recording, batch: int, limit: Limit) -> bool:
    """Whether the tensors alone, without what the allocator wastes, are within the capacity."""
    needed = limit.workspace if recording.products else 0
    return sum(recording.parts(batch).values()) + needed <= limit.capacity


def _runs(recording: Recording, batch: int, limit: Limit) -> bool:
    try:
        recording.replay(batch, limit.workspace if recording.products else 0, limit.capacity)
    except OutOfMemory:
        return False
    return True


def _fits(recording: Recording, batch: int, limit: Limit) -> bool:
    return _could(recording, batch, limit) and _runs(recording, batch, limit)


def _largest(traces: Traces, limit: Limit) -> int:
    """The largest batch that runs in the capacity, as `largest.find` defines it."""
    return largest.find(
        lambda batch: _could(traces.general, batch, limit),
        lambda batch: _runs(traces.general, batch, limit) if batch > 1 else _fits(traces.at(1), 1, limit),
    )


def _settle(traces: Traces, limit: Limit, found: int) -> int:
    """A batch near `found` that runs, where every batch is traced and few can be."""
    while found > 0 and not _fits(traces.at(found), found, limit):
        found -= max(1, found // 32)
    return max(0, found)


__all__ = ["Traces", "cannot", "more", "work_of"]
