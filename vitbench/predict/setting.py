"""What is asked about, and what is known of it: a model as it runs, and its kernels. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from vitbench.catalog import Resolution
from vitbench.predict.table import Kernel, Table

#: How models run: as eager PyTorch does, or through torch.compile in its default mode.
IMPLS = ("eager", "compile")
DTYPES = ("amp", "amp-fp16", "bf16", "fp16", "fp32", "tf32")


@dataclass(frozen=True)
class Setting:
    """A model as it runs: what decides its kernels but the batch.

    Attributes:
        fast_norm: timm's models normalise in the lower precision under autocast, as `set_fast_norm` makes them.
        reparam: branches that can be are merged.
        num_classes: outputs of the classifier, 0 for none; None for those that vitbench gives the model.
        impl: one of IMPLS.
    """

    model: str
    resolution: Resolution
    layout: str = "nchw"
    dtype: str = "amp"
    fast_norm: bool = False
    reparam: bool = False
    num_classes: int | None = None
    impl: str = "eager"


@dataclass(frozen=True)
class Answer:
    """Kernels with how often each starts, parameters, lines of memory (see `operators.Trace`); or why not."""

    kernels: tuple[tuple[Kernel, int], ...] = ()
    parameters: int = 0
    family: str = ""
    memory: tuple[tuple[int, int], ...] = ()
    reason: str = ""

    @cached_property
    def table(self) -> Table:
        """The kernels as columns."""
        return Table.of([self.kernels])

    def peak_bytes(self, batch: int) -> int:
        """What tensors take at the peak of a step without gradients."""
        return max(constant + batch * slope for constant, slope in self.memory)


__all__ = ["DTYPES", "IMPLS", "Answer", "Setting"]
