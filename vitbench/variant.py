"""What of a model is asked for other than its published form. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True, slots=True)
class Variant:
    """The model's own where nothing is said.

    num_classes: outputs of the classifier. drop_path: stochastic depth of the last block, in training. reparam: merge
    branches for inference. checkpointing: gradient checkpointing in training. config: path of a JSON configuration, of
    transformers' models. compile_mode: of torch.compile, one of COMPILE_MODES.
    """

    num_classes: int | None = None
    drop_path: float | None = None
    reparam: bool = False
    checkpointing: bool = False
    config: str = ""
    compile_mode: str = ""


PUBLISHED = Variant()
