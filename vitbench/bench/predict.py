"""What can be said of a case without running it: parameters, MACs, peak memory, images a second. For plans and rows.

Memory of a CPU is predicted from what its operators allocate, that of a GPU by `vitbench.memory` from CUDA's rules.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache, partial

import torch
from torch import nn

from vitbench import cards
from vitbench.bench import isolation
from vitbench.bench.build import autocast_dtype
from vitbench.bench.plan import Case
from vitbench.catalog import Resolution
from vitbench.measure import device as devices
from vitbench.measure import flops, memory
from vitbench.measure.flops import FlopCount
from vitbench.memory.plan import DEFAULT_GPU, Target, target_of
from vitbench.memory.predict import Answer, ask
from vitbench.memory.setting import Limit, Setting, batch_words, prefers_cudnn, workspace_bytes
from vitbench.models import spec_of, unserved
from vitbench.ops.bundle import EAGER, Ops
from vitbench.ops.implementations import ops_for
from vitbench.ops.names import COMPILED
from vitbench.predict import ask as throughput
from vitbench.predict.forecast import forecast
from vitbench.predict.setting import DTYPES
from vitbench.predict.setting import Setting as ThroughputSetting
from vitbench.trace.precision import TORCH_DTYPES
from vitbench.variant import PUBLISHED, Variant


def _build(model: str, resolution: Resolution, variant: Variant, ops: Ops) -> nn.Module:
    spec = spec_of(model, variant)
    return spec.build(ops, resolution, spec.num_classes)


@cache
def count(model: str, resolution: Resolution, variant: Variant = PUBLISHED) -> FlopCount:
    """Of the eager model at batch 1: the same for every implementation of a case."""
    with torch.device("meta"):
        built = _build(model, resolution, variant, EAGER)
    try:
        return flops.count(built, resolution)
    finally:
        isolation.forget()


@lru_cache(maxsize=4096)
def memory_mib(case: Case, variant: Variant = PUBLISHED) -> float | None:
    """Predicted peak memory in MiB, for the allocator of the case's device; None for compiled
    implementations, whose buffers only the compiler knows, and for those that the model does not have.

    Raises: CannotPredict where the model's code does not run on tensors without data on a GPU.
    """
    if case.impl in COMPILED or unserved(case.model, case.impl, case.resolution, variant):
        return None
    try:
        if case.device != "cpu":
            return _on_gpu(case, _target(case), variant=variant).predictions[case.batch].peak
        return memory.predict(
            partial(_build, case.model, case.resolution, variant, ops_for(case.impl)),
            case.resolution,
            case.batch,
            "train" if case.mode == "train" else "infer",
            TORCH_DTYPES[case.dtype],
            channels_last=case.layout == "nhwc",
            autocast=autocast_dtype(case),
        ).peak_mib
    finally:
        isolation.forget()


@lru_cache(maxsize=4096)
def img_per_s(case: Case, variant: Variant = PUBLISHED) -> float | None:
    """Predicted images a second of eager inference on the card that is here; None for others, on other devices, and
    where the model's code does not run on tensors without data."""
    card = _card_here(case)
    plain = replace(variant, compile_mode="") == PUBLISHED
    if card is None or case.impl != "eager" or case.mode != "infer" or not plain or case.dtype not in DTYPES:
        return None
    try:
        setting = ThroughputSetting(case.model, case.resolution, case.layout, case.dtype)
        answer = throughput.ask(setting)
        return None if answer.reason else forecast(answer, setting, card, case.batch).img_per_s
    finally:
        isolation.forget()


class CannotPredict(Exception):
    """A model's code does not run on tensors without data; the message says why."""


def verdict(case: Case, gpu: str, variant: Variant = PUBLISHED) -> str:
    """Whether a case of a GPU fits on a card, and the largest batch that does: "fits RTX 4090 (up to batch 512)"."""
    target = target_of(cards.find(gpu))
    limit = target.limit(case.mode)
    answer = _on_gpu(case, target, limit, variant=variant)
    fits = "fits" if answer.fits[case.batch, limit] else "will not fit"
    return f"{fits} {target.name} (up to batch {batch_words(answer.largest[limit])})"


def largest(case: Case, gpu: str) -> int:
    """The largest batch of a case that a card holds, as predicted.

    Raises: CannotPredict.
    """
    target = target_of(cards.find(gpu))
    limit = target.limit(case.mode)
    return _on_gpu(case, target, limit).largest[limit]


def setting_of(case: Case, target: Target, variant: Variant = PUBLISHED) -> Setting:
    """The step of a case as `vitbench.memory` knows it: AdamW is fused."""
    optimizer = "adamw" if case.mode == "train" else "none"
    return Setting(
        case.model,
        case.resolution,
        case.mode,
        case.dtype,
        case.impl,
        case.layout,
        optimizer,
        cudnn=prefers_cudnn(target.arch),
        variant=replace(variant, compile_mode=""),
    )


def _target(case: Case) -> Target:
    """The card that is here; without one, or where nobody knows it, that of sm_80."""
    return target_of(_card_here(case) or cards.find(DEFAULT_GPU))


def _card_here(case: Case) -> cards.Card | None:
    if case.device == "cpu" or not devices.gpu_count():
        return None
    return cards.of_device(devices.environment(case.device).device_name)


def _on_gpu(case: Case, target: Target, *limits: Limit, variant: Variant = PUBLISHED) -> Answer:
    setting = setting_of(case, target, variant)
    answer = ask(setting, [case.batch], workspace_bytes(target.arch, case.mode), limits)
    if answer.reason:
        raise CannotPredict(answer.reason)
    return answer
