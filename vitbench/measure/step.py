"""What is measured: one inference or one training step, the same callable for time, energy and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitbench.models import outputs
from vitbench.models.outputs import Output


@dataclass(frozen=True, eq=False)
class Step:
    """Calling it runs the model once; in inference `targets` and `optimizer` are None. Made by `make_step`."""

    model: nn.Module
    x: Tensor
    targets: Tensor | None
    optimizer: torch.optim.Optimizer | None
    autocast: torch.dtype | None

    def __call__(self) -> Output:
        """The output of an inference step, the loss of a training step."""
        if self.targets is None:
            with torch.inference_mode(), self._precision():
                return self.model(self.x)
        assert self.targets is not None
        with self._precision():
            loss = outputs.loss(self.model(self.x), self.targets)
        loss.backward()
        self.update()
        return loss.detach()

    def update(self) -> None:
        """The optimizer's part of a training step: new weights from the gradients, which are then freed."""
        assert self.optimizer is not None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def held(self) -> Iterator[Tensor]:
        """Every tensor that is alive between steps; some may share storage."""
        yield self.x
        yield from self.model.parameters()
        yield from self.model.buffers()
        if self.targets is not None:
            yield self.targets
        if self.optimizer is not None:
            for state in self.optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor))

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.x.device.type, self.autocast)


def make_step(
    model: nn.Module, x: Tensor, mode: str, autocast: torch.dtype | None = None, capturable: bool = False
) -> Step:
    """One step of `model` on `x`, which it puts in training or evaluation mode.

    Args:
        model: returns logits or detections; see vitbench.models.outputs for the loss it is trained on.
        x: [B, C, H, W] on the model's device.
        mode: "infer" (evaluation mode under inference_mode) or "train" (forward, loss against
            fixed targets, backward, AdamW, gradients freed).
        autocast: dtype of mixed precision, or None.
        capturable: whether the optimizer can be recorded in a CUDA graph.

    AdamW is fused: one kernel per dtype without temporaries, on CPU and CUDA alike. Its rate is so small
    that the weights stay useful however often the step is repeated.
    """
    if mode == "infer":
        return Step(model.eval(), x, None, None, autocast)
    if mode != "train":
        raise ValueError(f'mode is "infer" or "train", not {mode!r}')
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True, capturable=capturable)
    targets = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
    return Step(model, x, targets, optimizer, autocast)


__all__ = ["Step", "make_step"]
