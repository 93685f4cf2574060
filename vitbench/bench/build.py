"""Builds what a case runs: the model with its weights, the input, in the case's dtype, layout and device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vitbench.bench.plan import Case
from vitbench.catalog import Resolution, parse_resolution
from vitbench.models import create_model, inputs, spec_of
from vitbench.models.undrawn import Undrawn
from vitbench.models.variants import of_theirs
from vitbench.models.weights import enliven
from vitbench.ops.implementations import ops_for
from vitbench.trace.precision import AUTOCAST
from vitbench.variant import PUBLISHED, Variant


def autocast_dtype(case: Case) -> torch.dtype | None:
    return AUTOCAST.get(case.dtype)


def memory_format(case: Case) -> torch.memory_format:
    return torch.channels_last if case.layout == "nhwc" else torch.contiguous_format


def set_precision(case: Case) -> None:
    """TF32 only for the dtype that asks for it."""
    torch.set_float32_matmul_precision("high" if case.dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = case.dtype == "tf32"


def use_device(device: str) -> None:
    """Makes a GPU that is named by number the current one: events, graphs and statistics of memory belong to that."""
    if ":" in device:
        torch.cuda.set_device(device)


@dataclass
class Workload:
    """Models and inputs of one sweep, kept while the next case wants the same ones."""

    images: str = ""
    weights: str = ""
    weights_resolution: str = ""
    variant: Variant = PUBLISHED
    _weights_of: dict[tuple[str, Resolution], dict[str, Tensor]] = field(default_factory=dict)
    _input_of: dict[tuple[str, Resolution], Tensor] = field(default_factory=dict)
    _module_of: dict[tuple[object, ...], nn.Module] = field(default_factory=dict)

    def state(self, model: str, resolution: Resolution) -> dict[str, Tensor]:
        """The weights that every implementation of a model gets: the file's, or seeded random ones, enlivened."""
        key = (model, resolution)
        if key not in self._weights_of:
            self._weights_of.clear()
            torch.manual_seed(0)
            saved = parse_resolution(self.weights_resolution) if self.weights_resolution else None
            # Branches are merged with their weights in them: the file's, or those of a first pass.
            whole = replace(self.variant, reparam=False)
            built = create_model(
                model, resolution=resolution, weights=self.weights or None, weights_resolution=saved, variant=whole
            )
            if not self.weights:
                enliven(built, inputs.noise(resolution, 2))
            if self.variant.reparam:
                built = of_theirs(built.eval(), Variant(reparam=True))
            self._weights_of[key] = built.state_dict()
        return self._weights_of[key]

    def module(self, case: Case, impl: str, dtype: torch.dtype) -> nn.Module:
        """The model of `case` with the operations of `impl` and fresh weights, uncompiled, in the case's mode."""
        key = (case.model, case.resolution, case.device, impl, dtype, case.layout)
        state = self.state(case.model, case.resolution)
        if key not in self._module_of:
            if any(kept[:3] != key[:3] for kept in self._module_of):
                self._module_of.clear()
            with Undrawn():
                module = create_model(case.model, ops_for(impl).name, case.resolution, variant=self.variant)
            module.to(case.device, dtype)
            # Module.to takes a memory format too, which its type stubs leave out.
            self._module_of[key] = module.to(memory_format=memory_format(case))  # type: ignore[call-overload]
        module = self._module_of[key]
        module.load_state_dict(state)
        if impl.startswith("fused"):
            import vitkernels  # needs triton, which not every platform has

            (vitkernels.freeze if case.mode == "infer" else vitkernels.thaw)(module)
        return module.train(case.mode == "train")

    def input(self, case: Case, dtype: torch.dtype, batch: int | None = None) -> Tensor:
        """[batch, 3, H, W] of the case; default its own batch size."""
        batch = batch or case.batch
        key = (case.model if self.images else "", case.resolution)
        if key not in self._input_of or self._input_of[key].shape[0] < batch:
            self._input_of.clear()
            self._input_of[key] = (
                inputs.photographs(Path(self.images), case.resolution, batch, spec_of(case.model).preprocessing)
                if self.images
                else inputs.noise(case.resolution, batch)
            )
        return self._input_of[key][:batch].to(case.device, dtype, memory_format=memory_format(case), copy=True)

    def drop_modules(self) -> None:
        """Forgets built models, to give their memory back."""
        self._module_of.clear()

    def drop_dtype(self, dtype: torch.dtype) -> None:
        """Forgets the models built in one dtype."""
        self._module_of = {key: module for key, module in self._module_of.items() if key[4] != dtype}
