"""From options to cases, and from answers to rows. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitbench import cards, selection
from vitbench.catalog import Resolution, format_resolution
from vitbench.errors import InputError
from vitbench.memory import pool
from vitbench.memory.options import MemoryOptions
from vitbench.memory.pool import Question
from vitbench.memory.predict import Answer, Prediction
from vitbench.memory.reserve import CONTEXT_MIB
from vitbench.memory.setting import (
    DTYPES,
    LARGEST_BATCH,
    MIB,
    OPTIMIZERS,
    Limit,
    Setting,
    batch_words,
    prefers_cudnn,
    workspace_bytes,
)
from vitbench.ops.names import IMPLS
from vitbench.variant import Variant

DEFAULT_GPU = "A100 80GB"
#: How far a prediction may be off: what most of the published figures are within (`truth.MOST`).
MARGIN = 0.03
FITS, BORDERLINE, NOT = "fits", "borderline", "does not fit"


@dataclass(frozen=True)
class Target:
    """What has to hold a step: a card's name, its architecture (80 for sm_80) and its usable MiB."""

    name: str
    arch: int
    usable_mib: float

    def limit(self, mode: str, scale: float = 1.0) -> Limit:
        """What is left for torch's allocator beside the context; times a scale for what predictions may be off."""
        return Limit(int(MIB * scale * max(0.0, self.usable_mib - CONTEXT_MIB)), workspace_bytes(self.arch, mode))


@dataclass(frozen=True)
class Row:
    """A case on a card, as the CSV has it; MiB at the peak, empty where `reason` says why."""

    model: str
    resolution: str
    batch: int
    mode: str
    dtype: str
    impl: str
    optimizer: str
    gpu: str
    weights_mib: float | None = None
    gradients_mib: float | None = None
    optimizer_mib: float | None = None
    activations_mib: float | None = None
    workspace_mib: float | None = None
    peak_mib: float | None = None
    reserve_mib: float | None = None
    verdict: str = ""
    largest_batch: int | None = None
    reason: str = ""


def targets(gpu: str, gib: float | None) -> list[Target]:
    """The cards that are named.

    Raises: InputError on an unknown card, or an amount of memory that is none.
    """
    if gib is not None:
        if gpu:
            raise InputError("--gpu names cards and --gib is a card without a name: give one of them")
        if not 0 < gib < 2**20:
            raise InputError(f"--gib {gib:g} is no amount of memory: give the GiB that a card has, such as 24")
        return [Target(f"{gib:g} GiB", 80, 1024 * gib)]
    names = [name.strip() for name in (gpu or DEFAULT_GPU).split(",") if name.strip()]
    found = [target_of(cards.find(name)) for name in names]
    return list(dict.fromkeys(found))


def target_of(card: cards.Card) -> Target:
    return Target(card.name, card.arch, 1024 * card.usable_gib)


@dataclass(frozen=True)
class Cell:
    """A setting at its batches on one card, or why there is none; `size` is what was asked for."""

    setting: Setting
    target: Target
    size: str
    reason: str = ""


def settings(given: MemoryOptions, target: Target) -> list[Cell]:
    """Every combination of the options but the batches. A size that a model cannot take is a cell with the reason.

    Raises: InputError on anything unknown.
    """
    models = selection.match(given.model)
    impls = selection.split(given.impl, "impl", IMPLS)
    modes = selection.split(given.mode, "mode", selection.MODES)
    dtypes = selection.split(given.dtype, "dtype", DTYPES)
    layouts = selection.split(given.layout, "layout", selection.LAYOUTS)
    optimizers = selection.split(given.optimizer, "optimizer", OPTIMIZERS)
    sizes = selection.split_resolutions(given.resolution)
    if given.gradient_as_bucket_view and not given.ddp:
        raise InputError("--gradient-as-bucket-view is an option of DistributedDataParallel: give --ddp too")
    variant = Variant(num_classes=given.num_classes, drop_path=given.drop_path, reparam=given.reparam).check(modes)
    cells: list[Cell] = []
    for model in models:
        resolutions: dict[str, tuple[Resolution, str]] = {}
        for size in sizes:
            try:
                resolution = selection.resolve(model, size)
                if (resolution, "") not in resolutions.values():  # "native" may be one of the others
                    resolutions[size] = (resolution, "")
            except InputError as error:
                resolutions[size] = ((0, 0), str(error))
        for (size, (resolution, reason)), dtype, layout, impl, mode, optimizer in itertools.product(
            resolutions.items(), dtypes, layouts, impls, modes, optimizers
        ):
            setting = Setting(
                model,
                resolution,
                mode,
                dtype,
                impl,
                layout,
                optimizer,
                cudnn=prefers_cudnn(target.arch),
                variant=variant,
            )
            if mode == "train":
                setting = replace(
                    setting,
                    ddp=given.ddp,
                    bucket_view=given.gradient_as_bucket_view,
                    ema=given.ema,
                    checkpointing=given.checkpointing,
                )
            elif optimizer != optimizers[0]:
                continue
            else:
                setting = replace(setting, optimizer="none")
            cells.append(Cell(setting, target, size, reason))
    return cells


def rows(
    cells: Sequence[Cell], batches: Sequence[int], told: Callable[[int, int], None] = lambda done, total: None
) -> list[Row]:
    """A row for each cell and batch, in their order; `told` hears how many settings of how many are done."""
    asked = [cell for cell in cells if not cell.reason]
    questions = [_question(cell, batches) for cell in asked]
    answers = pool.ask(questions, lambda done: told(done, len(questions)))
    of_cell = dict(zip(map(id, asked), answers, strict=True))
    return [_row(cell, batch, of_cell.get(id(cell))) for cell in cells for batch in batches]


def _limits(cell: Cell) -> tuple[Limit, Limit, Limit]:
    mode = cell.setting.mode
    return tuple(cell.target.limit(mode, scale) for scale in (1.0, 1 - MARGIN, 1 + MARGIN))  # type: ignore[return-value]


def _question(cell: Cell, batches: Sequence[int]) -> Question:
    return Question(cell.setting, tuple(batches), workspace_bytes(cell.target.arch, cell.setting.mode), _limits(cell))


def _row(cell: Cell, batch: int, answer: Answer | None) -> Row:
    setting = cell.setting
    size = cell.size if cell.reason else format_resolution(setting.resolution)
    row = Row(
        setting.model, size, batch, setting.mode, setting.dtype, setting.impl, setting.optimizer, cell.target.name
    )
    if answer is None or answer.reason:
        return replace(row, reason=cell.reason if answer is None else answer.reason)
    found = answer.predictions[batch]
    largest = answer.largest or 0
    return replace(
        row,
        **_parts(found),
        reserve_mib=CONTEXT_MIB + found.cache,
        verdict=_verdict(cell, batch, answer),
        largest_batch=largest,
        reason="; ".join(
            words
            for words, said in (
                ("without the workspaces that cuDNN chooses for convolutions", answer.convolutions),
                ("without what cuDNN keeps of recurrent layers, which it alone knows", answer.recurrent),
                (f"largest batch: {batch_words(largest)}, none larger was tried", largest >= LARGEST_BATCH),
            )
            if said
        ),
    )


def _parts(found: Prediction) -> dict[str, Any]:
    return {
        "weights_mib": found.weights,
        "gradients_mib": found.gradients,
        "optimizer_mib": found.optimizer,
        "activations_mib": found.activations,
        "workspace_mib": found.workspace,
        "peak_mib": found.peak,
    }


def _verdict(cell: Cell, batch: int, answer: Answer) -> str:
    _, low, high = _limits(cell)
    if answer.fits[batch, low]:
        return FITS
    return BORDERLINE if answer.fits[batch, high] else NOT


__all__ = [
    "BORDERLINE",
    "DEFAULT_GPU",
    "FITS",
    "MARGIN",
    "NOT",
    "Cell",
    "Row",
    "Target",
    "rows",
    "settings",
    "target_of",
    "targets",
]
