"""What one run of a model gives, and how far two of them differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitbench.models import outputs
from vitbench.models.outputs import Output


@dataclass(frozen=True)
class Outcome:
    """What one run of a model gives: its output and, in training, the gradient of every parameter."""

    output: Output
    gradients: dict[str, Tensor]

    def finite(self) -> bool:
        return all(bool(torch.isfinite(t).all()) for t in (*outputs.tensors(self.output), *self.gradients.values()))

    def floor(self) -> float:
        """A tenth of the root mean square of all gradients; 0 where there are none."""
        count = sum(g.numel() for g in self.gradients.values())
        total = sum(g.double().square().sum().item() for g in self.gradients.values())
        return 0.1 * (total / count) ** 0.5 if count else 0.0


_OUTPUT = "output "


def is_output(name: str) -> bool:
    return name.startswith(_OUTPUT)  # no parameter's name has a space


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
        loss = outputs.loss(output, targets(x.shape[0], output).to(x.device))
        parameters = {name: p for name, p in named.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    with torch.no_grad():
        for name, buffer in named.named_buffers():
            buffer.copy_(running[name])
    used = {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
    return Outcome([tensor.detach() for tensor in outputs.tensors(output)], used)


def targets(batch: int, output: Output) -> Tensor:
    """Fixed class labels [batch], spread over the classes."""
    return (torch.arange(batch) * 37) % outputs.classes(output)


def relative_error(got: Outcome, want: Outcome) -> float:
    """The largest of `errors`."""
    return max(errors(got, want).values())


def errors(got: Outcome, want: Outcome) -> dict[str, float]:
    """The errors of the output's tensors ("output 0", ...) and of the parameters' gradients, each a ratio of 2-norms.

    A lone logit may come near zero by cancellation and is held to 1 at least, the unit of a log-odds.
    A gradient that is zero in exact arithmetic (a bias before a normalisation) has only rounding in
    it; it is measured against a tenth of the average gradient instead of against itself: bf16 leaves noise of
    about a hundredth of it. A gradient that `got` lacks is zero.
    """
    pairs = zip(outputs.tensors(got.output), outputs.tensors(want.output), strict=True)
    found = {f"{_OUTPUT}{i}": _ratio(g, w, outputs.smallest_norm(w)) for i, (g, w) in enumerate(pairs)}
    floor = want.floor()
    for name, g in want.gradients.items():
        ours = got.gradients[name] if name in got.gradients else torch.zeros_like(g)
        found[name] = _ratio(ours, g, floor * g.numel() ** 0.5)
    return found


def _ratio(got: Tensor, want: Tensor, floor: float) -> float:
    want = want.double()
    scale = max(want.norm().item(), floor, 1e-300)
    error = (got.to(want.device).double() - want).norm().item() / scale
    return float("inf") if error != error else error
