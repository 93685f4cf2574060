"""One benchmark problem: inputs at one shape, the implementations that compete for it, and what it cannot avoid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitbench.verify.outcome import Outcome

PASSES = ("fwd", "fwd+bwd")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NEEDS_GPU = "the kernels need a GPU; CPU tensors are computed by the reference"

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Impl:
    """One way to compute a problem.

    Attributes:
        call: takes what `prepare` made, as positional arguments.
        prepare: makes from the problem's inputs those that this implementation likes best (dtype, layout, alignment),
            outside of the measured time. For fwd+bwd one for each input, in their order.
        unsupported: why it cannot compute the problem, where that is known beforehand.
        launches: the launches in the audit's tables that this runs, wildcards joined with "+"; empty for others' code.
    """

    name: str
    call: Call
    prepare: Callable[[list[Tensor]], list[Tensor]] = list
    unsupported: str = ""
    launches: str = ""


@dataclass(frozen=True)
class Problem:
    """A case of a kernel in one pass and dtype on one device.

    Attributes:
        inputs: every one receives a gradient in the pass fwd+bwd.
        grad: of the output, in its dtype and usual layout; None in the pass fwd.
        reference: computes in the dtype of its inputs, here fp64.
        batched: how many of the first inputs have the images in front and no sum over images in their gradient;
            0: the images depend on each other.
        image_elements: of the largest tensor that an image makes (scores of all heads, or a map).
        work: (floating-point operations, bytes) of the forward and, in the pass fwd+bwd, of the backward.
    """

    inputs: list[Tensor]
    grad: Tensor | None
    reference: Call
    impls: tuple[Impl, ...]
    work: tuple[tuple[int, int], ...]
    batched: int
    image_elements: int

    def step(self, impl: Impl) -> Callable[[], tuple[Tensor, ...]]:
        """A callable that computes the pass once: (output,) or (output, gradient of every input)."""
        train = self.grad is not None
        leaves = [t.detach().requires_grad_(train) for t in impl.prepare(self.inputs)]
        return _step(impl.call, leaves, self.grad)


def _step(call: Call, leaves: Sequence[Tensor], grad: Tensor | None) -> Callable[[], tuple[Tensor, ...]]:
    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (call(*leaves),)

    def both() -> tuple[Tensor, ...]:
        out = call(*leaves)
        return (out.detach(), *torch.autograd.grad(out, leaves, grad))

    return forward if grad is None else both


def outcome(results: Sequence[Tensor]) -> Outcome:
    return Outcome(results[0], {str(i): t for i, t in enumerate(results[1:])})


#: Elements that the largest tensor inside of the reference may have; in fp64 this is half a GiB.
_CHUNK = 1 << 26


def reference_outcome(problem: Problem) -> Outcome:
    """The reference in fp64, a few images at a time where they do not depend on each other."""
    inputs, batched = problem.inputs, problem.batched
    images = inputs[0].shape[0]
    size = max(1, _CHUNK // problem.image_elements) if batched else images
    shared = [t.double() for t in inputs[batched:]]
    outputs: list[Tensor] = []
    own: list[list[Tensor]] = [[] for _ in inputs[:batched]]
    sums = [torch.zeros_like(t) for t in shared]
    for start in range(0, images, size):
        pick = slice(start, start + size)
        leaves = [t[pick].double() for t in inputs[:batched]] + shared
        leaves = [t.detach().requires_grad_(problem.grad is not None) for t in leaves]
        grad = None if problem.grad is None else problem.grad[pick].double()
        results = _step(problem.reference, leaves, grad)()
        outputs.append(results[0])
        for into, gradient in zip(own, results[1:], strict=False):
            into.append(gradient)
        for total, gradient in zip(sums, results[1 + batched :], strict=False):
            total += gradient
    gradients = [] if problem.grad is None else [*(torch.cat(parts) for parts in own), *sums]
    return outcome([torch.cat(outputs), *gradients])
