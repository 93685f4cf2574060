"""What the operations' autograd Functions share: which tensors they take, and a refusal where derivatives end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Gradients = tuple[Tensor | None, ...]
Given = TypeVar("Given", Tensor, Tensor | None)


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a call goes through autograd: to record it or, under forward-mode AD, to refuse it."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def distinct(*tensors: Given) -> list[Given]:
    """The tensors, with a view for one that was given before: torch.compile takes no Function of equal inputs."""
    found: list[Given] = []
    for tensor in tensors:
        again = tensor is not None and any(tensor is other for other in found)
        found.append(tensor.view_as(tensor) if again and tensor is not None else tensor)
    return found


class _Refuse(torch.autograd.Function):
    """Passes gradients on as functions of `source`, which have no derivative."""

    @staticmethod
    def forward(op: str, source: Tensor, *grads: Tensor | None) -> Gradients:
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        raise RuntimeError(f"{ctx.op} has no second derivative; differentiate {ctx.op}_reference twice instead")


def once_differentiable(op: str) -> Callable[[Callable[..., Gradients]], Callable[..., Gradients]]:
    """Makes a second derivative through a Function's `backward` an error.

    torch's decorator of this name sees the incoming gradients alone: the part through saved tensors would be zero.
    """

    def decorate(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
        @functools.wraps(backward)
        def run(ctx: Any, *grads: Tensor) -> Gradients:
            with torch.no_grad():
                found = backward(ctx, *grads)
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiled graph refuses by itself
                return found
            sources = (*grads, *ctx.saved_tensors)
            source = next((x for x in sources if x is not None and x.requires_grad), None)
            return found if source is None else _Refuse.apply(op, source, *found)

        return run

    return decorate
