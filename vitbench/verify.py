"""Is an implementation right? Its error against eager, held to what the dtype itself costs.

The yardstick is eager's own error: the same weights and the first images in fp64 against the case's
dtype. An implementation in that dtype may differ from eager by twice as much.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitbench import objective
from vitbench.objective import Output

#: Rounding that two correct orders of summation may differ by, even where eager's own error is luckily small.
FLOOR = 1e-5


def limit(own: float, dtype: torch.dtype) -> float:
    """The error that an implementation may have: twice eager's own, and at least a last place of `dtype`.

    An output of one or two numbers can be lucky in eager; no implementation is wrong for its last place.
    """
    return max(2 * own, FLOOR, torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Outcome:
    """What one run of a model gives: its output and, in training, the gradient of every parameter."""

    output: Output
    gradients: dict[str, Tensor]

    def finite(self) -> bool:
        return all(bool(torch.isfinite(t).all()) for t in (*objective.tensors(self.output), *self.gradients.values()))


def dropout_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that are random in training: dropout and drop-path with a rate above zero."""
    return [module for module in model.modules() if _rate(module) > 0]


def _rate(module: nn.Module) -> float:
    # Drop-path is a class of each library's own: torchvision's is StochasticDepth with p, the others' have drop_prob.
    if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
        return float(module.p)  # type: ignore[arg-type]
    return float(getattr(module, "drop_prob", None) or 0.0)


@contextlib.contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Randomness off, everything else (batch statistics) as it is."""
    random = [module for module in dropout_modules(model) if module.training]
    for module in random:
        module.eval()
    try:
        yield
    finally:
        for module in random:
            module.train()


def run(model: nn.Module, x: Tensor, mode: str, autocast: torch.dtype | None = None) -> Outcome:
    """One forward pass, or one training pass without the optimizer's step, randomness off.

    Running statistics are put back, so that a check leaves the model as it was.
    """
    named = getattr(model, "_orig_mod", model)  # torch.compile wraps a module and puts that before every name
    running = {name: buffer.clone() for name, buffer in named.named_buffers()} if mode == "train" else {}
    context = torch.autocast(x.device.type, autocast) if autocast is not None else contextlib.nullcontext()
    if mode == "infer":
        with torch.inference_mode(), context:
            return Outcome(model(x), {})
    with without_dropout(model):
        with context:
            output = model(x)
        loss = objective.loss(output, targets(x.shape[0], output).to(x.device))
        parameters = {name: p for name, p in named.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    with torch.no_grad():
        for name, buffer in named.named_buffers():
            buffer.copy_(running[name])
    used = {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
    return Outcome([tensor.detach() for tensor in objective.tensors(output)], used)


def targets(batch: int, output: Output) -> Tensor:
    """Fixed class labels [batch], spread over the classes."""
    return (torch.arange(batch) * 37) % objective.classes(output)


def relative_error(got: Outcome, want: Outcome) -> float:
    """The largest of the errors of the output's tensors and of the parameters' gradients, each a ratio of 2-norms.

    A lone logit may come near zero by cancellation and is held to 1 at least, the unit of a log-odds.
    A gradient that is zero in exact arithmetic (a bias before a normalisation) has only rounding in
    it; it is measured against a tenth of the average gradient instead of against itself: bf16 leaves noise of
    about a hundredth of it.
    """
    pairs = zip(objective.tensors(got.output), objective.tensors(want.output), strict=True)
    errors = [_ratio(g, w, objective.smallest_norm(w)) for g, w in pairs]
    if want.gradients:
        total = sum(g.double().square().sum().item() for g in want.gradients.values())
        count = sum(g.numel() for g in want.gradients.values())
        mean_square = total / count
        errors += [
            _ratio(got.gradients[name], g, 0.1 * (mean_square * g.numel()) ** 0.5) for name, g in want.gradients.items()
        ]
    return max(errors)


def _ratio(got: Tensor, want: Tensor, floor: float) -> float:
    want = want.double()
    scale = max(want.norm().item(), floor, 1e-300)
    error = (got.to(want.device).double() - want).norm().item() / scale
    return float("inf") if error != error else error
