"""What can be said of a case without running it: parameters, MACs, peak memory, images a second. For plans and rows.

Memory of a CPU is predicted from what its operators allocate, that of a GPU by `vitbench.memory` from CUDA's rules.
What was found out is kept for the next call, as there.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from functools import cache, lru_cache, partial
from pathlib import Path

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
from vitbench.memory import store
from vitbench.memory.plan import DEFAULT_GPU, Target, target_of
from vitbench.memory.predict import Answer, ask
from vitbench.memory.setting import Limit, Setting, batch_words, prefers_cudnn, workspace_bytes
from vitbench.models import spec_of, unserved
from vitbench.ops.implementations import ops_for
from vitbench.ops.names import COMPILED
from vitbench.predict import ask as throughput
from vitbench.predict.forecast import forecast
from vitbench.predict.setting import DTYPES, IMPLS
from vitbench.predict.setting import Setting as ThroughputSetting
from vitbench.trace.precision import TORCH_DTYPES
from vitbench.trace.skeleton import Unwritten
from vitbench.variant import PUBLISHED, Variant


@lru_cache(maxsize=1)
def _built(model: str, resolution: Resolution, variant: Variant, impl: str) -> nn.Module:
    """Without its weights: to be counted, then traced, and left as it is by both."""
    spec = spec_of(model, variant)
    with torch.device("meta"), Unwritten():
        return spec.build(ops_for(impl), resolution, spec.num_classes)


#: Variables that choose the kernels of a CPU.
_CHOOSING = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def _kept(what: object, variant: Variant) -> Path:
    """The file of what is known; it changes with the code that finds it out."""
    here = Path(__file__)
    code = [here, here.with_name("build.py"), *sorted(here.parents[1].joinpath("measure").glob("*.py"))]
    return store.folder_of("bench", code) / store.name_of((what, variant), variant.config)


def find_count(model: str, resolution: Resolution, variant: Variant = PUBLISHED) -> FlopCount:
    """What `count` keeps, found anew."""
    try:
        return flops.count(_built(model, resolution, variant, "eager"), resolution)
    finally:
        isolation.forget()


@cache
def count(model: str, resolution: Resolution, variant: Variant = PUBLISHED) -> FlopCount:
    """Of the eager model at batch 1: the same for every implementation of a case."""
    path = _kept((model, resolution), variant)
    if kept := store.read_file(path):
        return FlopCount(**kept | {name: tuple(kept[name]) for name in ("uncounted_ops", "differences")})
    found = find_count(model, resolution, variant)
    store.write_file(path, asdict(found))
    return found


def find_memory(case: Case, variant: Variant = PUBLISHED) -> float:
    """What `memory_mib` keeps, found anew for a CPU."""
    try:
        if case.device != "cpu":
            return _on_gpu(case, _target(case), variant=variant).predictions[case.batch].peak
        return memory.predict(
            partial(_built, case.model, case.resolution, variant, case.impl),
            case.resolution,
            case.batch,
            "train" if case.mode == "train" else "infer",
            TORCH_DTYPES[case.dtype],
            channels_last=case.layout == "nhwc",
            autocast=autocast_dtype(case),
        ).peak_mib
    finally:
        _built.cache_clear()
        isolation.forget()


@lru_cache(maxsize=4096)
def memory_mib(case: Case, variant: Variant = PUBLISHED) -> float | None:
    """Predicted peak memory in MiB, for the allocator of the case's device; None for compiled
    implementations, whose buffers only the compiler knows, and for those that the model does not have.

    Raises: CannotPredict where the model's code does not run on tensors without data on a GPU.
    """
    if case.impl in COMPILED or unserved(case.model, case.impl, case.resolution, variant):
        return None
    if case.device != "cpu":
        return find_memory(case, variant)
    machine = (devices.cpu_name(), torch.get_num_threads(), *map(os.environ.get, _CHOOSING))
    path = _kept((case, machine), variant)
    if not (kept := store.read_file(path)):
        kept = {"peak_mib": find_memory(case, variant)}
        store.write_file(path, kept)
    return float(kept["peak_mib"])


@lru_cache(maxsize=4096)
def img_per_s(case: Case, variant: Variant = PUBLISHED) -> float | None:
    """Predicted images a second of inference, eager or compiled, on the card that is here; None for other work, on
    other devices, and where the model's code does not run on tensors without data."""
    card = _card_here(case)
    plain = (variant if case.impl == "compile" else replace(variant, compile_mode="")) == PUBLISHED
    if card is None or case.impl not in IMPLS or case.mode != "infer" or not plain or case.dtype not in DTYPES:
        return None
    try:
        setting = ThroughputSetting(case.model, case.resolution, case.layout, case.dtype, impl=case.impl)
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
    return f"{fits} {target.name} (up to batch {batch_words(answer.largest or 0)})"


def largest(case: Case, gpu: str) -> int:
    """The largest batch of a case that a card holds, as predicted.

    Raises: CannotPredict.
    """
    target = target_of(cards.find(gpu))
    limit = target.limit(case.mode)
    return _on_gpu(case, target, limit).largest or 0


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
