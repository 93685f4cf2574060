"""Peak memory on a CUDA device that need not be here, and the largest batch that it holds. Imports no torch.

A step is traced at two batches; each storage's bytes are then known for all (`recording`), and the caching allocator is
replayed for a batch (`allocator`). What was found out is kept (`store`). Only what is not known yet imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vitbench.memory import store
from vitbench.memory.setting import MIB, Limit, Setting


@dataclass(frozen=True)
class Prediction:
    """MiB at the peak, as `max_memory_allocated` counts them; they add up to `peak`.

    Attributes:
        weights: parameters, buffers and an average of them. gradients: DDP's buckets included.
        activations: all else, with what the allocator's rounding takes.
        workspace: cuBLAS's.
        cache: what the allocator holds beyond the peak in a loop over such steps.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float
    cache: float

    @property
    def peak(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.workspace


@dataclass(frozen=True)
class Answer:
    """Of one setting: by batch what is predicted, what fits; or why nothing is known.

    Attributes:
        largest: the largest batch that runs within the first limit, as `largest.find` defines it (0: none does,
            LARGEST_BATCH: or more); None without limits.
        fits: for (batch, limit) whether the step runs in that capacity.
        convolutions: whether the step has convolutions, whose workspaces cuDNN chooses when it runs.
        recurrent: whether the model has recurrent layers, of which cuDNN alone knows what it keeps.
        verified: batches at which a trace confirmed what was found from others.
    """

    predictions: dict[int, Prediction] = field(default_factory=dict)
    largest: int | None = None
    fits: dict[tuple[int, Limit], bool] = field(default_factory=dict)
    convolutions: bool = False
    recurrent: bool = False
    verified: tuple[int, ...] = ()
    reason: str = ""


def ask(setting: Setting, batches: Sequence[int], workspace: int, limits: Sequence[Limit] = ()) -> Answer:
    """What is predicted of a step at each batch, its cuBLAS workspace in bytes given, whether each limit holds it, and
    the largest batch that the first limit holds.

    A step that cannot be predicted is an answer with the reason, not an exception.
    """
    kept = store.read(setting)
    if not store.is_known(kept, batches, workspace, limits):
        from vitbench.memory import find  # imports torch

        kept = find.more(setting, kept, batches, workspace, limits)
        store.write(setting, kept)
    return _answer(kept, batches, workspace, limits)


def is_known(setting: Setting, batches: Sequence[int], workspace: int, limits: Sequence[Limit] = ()) -> bool:
    """Whether `ask` answers from what was kept."""
    return store.is_known(store.read(setting), batches, workspace, limits)


def _answer(kept: dict[str, Any], batches: Sequence[int], workspace: int, limits: Sequence[Limit]) -> Answer:
    if kept.get("reason"):
        return Answer(reason=kept["reason"])
    return Answer(
        {batch: Prediction(*(v / MIB for v in kept["peaks"][f"{batch}/{workspace}"])) for batch in batches},
        kept["largest"][limits[0].key] if limits else None,
        {(batch, limit): kept["fits"][f"{batch}/{limit.key}"] for batch in batches for limit in limits},
        kept["convolutions"],
        kept["recurrent"],
        tuple(kept["verified"]),
    )


__all__ = ["Answer", "Prediction", "ask", "is_known"]
