"""What of a model is asked for other than its published form. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from typer import Option

from vitbench.errors import InputError

NumClasses = Annotated[int | None, Option(help="Outputs of the classifier. Default: the published model's.")]
DropPath = Annotated[
    float | None, Option(help="Stochastic depth of the last block in training. Default: the model's own.")
]
Reparam = Annotated[bool, Option("--reparam", help="Merge branches for inference (timm's reparameterised models).")]

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

    def check(self, modes: Collection[str]) -> Variant:
        """Itself.

        Raises: InputError on a number that cannot be, or that no mode has a use for.
        """
        if self.num_classes is not None and self.num_classes < 1:
            raise InputError(f"--num-classes {self.num_classes} should be 1 or more")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise InputError(f"--drop-path {self.drop_path} should be from 0 to below 1")
        if self.reparam and set(modes) != {"infer"}:
            raise InputError("--reparam merges branches for inference: leave out --mode train, give --mode infer")
        for option, wanted in (("--checkpointing", self.checkpointing), ("--drop-path", self.drop_path is not None)):
            if wanted and "train" not in modes:
                raise InputError(f"{option} acts in training: add --mode train")
        return self


PUBLISHED = Variant()
