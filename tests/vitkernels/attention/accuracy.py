"""How wrong a result of an attention kernel may be.

Twice the error of plain PyTorch in the same precision is what users live with already, but that error is a matter of
luck where it is small or the truth is zero: it depends on the processor, and a single key has a gradient of zero.
So a bound is added that no luck moves: what rounding can do to the terms of which a result is the sum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Roundings to the inputs' dtype on the way to a result, half an eps each: weights, output, dS, the result itself.
ROUNDINGS = 2.0
#: How many eps of fp32 sums of some hundred terms lose in any order, and products that are three of TF32.
FP32_SUMS = 16.0


def run(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The output and the gradient of every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def sizes_of_terms(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, grad: Tensor, scale: float
) -> tuple[list[Tensor], float]:
    """How large the terms are of which out, dq, dk, dv and dbias are sums, and those of a score.

    What one query gives is the sum of its terms' absolute values, for their errors may all have one sign: they share
    the row sum of softmax. Errors of queries and images are independent, so that their squares add up. An error of e
    in the exponent of softmax changes a weight by a share of e: a score of 1000 costs its weight 1000 eps.

    Args:
        q, grad: [B, H, N, D]; k, v: [B, H, M, D]; bias: [H, N, M]; all fp64.
    """
    weights = (q @ k.mT * scale + bias).softmax(-1)
    dweights = grad.abs() @ v.abs().mT
    out = weights @ v.abs()
    dscores = weights * (dweights + (weights * dweights).sum(-1, keepdim=True))
    dk = abs(scale) * (dscores.square().mT @ q.square()).sqrt()
    dv = (weights.square().mT @ grad.square()).sqrt()
    sizes = [out, abs(scale) * dscores @ k.abs(), dk, dv, dscores.square().sum(0).sqrt()]
    score = abs(scale) * (q.abs() @ k.abs().mT).max() + bias[bias.isfinite()].abs().max()
    return sizes, score.item()


def sizes_of_gated_terms(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, grad: Tensor, scale: float
) -> tuple[list[Tensor], float]:
    """The same of out, dq, dk, dv, dpositional and dgate: of two softmaxes and of the gate between them."""
    g = gate.sigmoid()[:, None, None]
    (out, dq, dk, dv, _), score = sizes_of_terms(q, k, v, torch.zeros_like(positional), grad, scale)
    nothing = torch.zeros_like(q)
    (fixed_out, _, _, fixed_dv, dpositional), largest = sizes_of_terms(nothing, k, v, positional, grad, scale)
    dgate = g * (1 - g) * (grad * (out + fixed_out)).square().sum((0, 2, 3)).sqrt().view_as(g)
    mixed = [(1 - g) * out + g * fixed_out, (1 - g) * dq, (1 - g) * dk, (1 - g) * dv + g * fixed_dv]
    return [*mixed, g * dpositional, dgate.view_as(gate)], max(score, largest)


def assert_accurate(
    got: list[Tensor], rival: list[Tensor], exact: list[Tensor], sizes: list[Tensor], score: float
) -> None:
    """Every result is finite and off by at most twice the rival's largest error plus what rounding can do there.

    Args:
        got, rival: results of the kernel and of plain PyTorch in the same precision, the output first.
        exact, sizes, score: the results, and what `sizes_of_terms` gives, in fp64.
    """
    share = ROUNDINGS * torch.finfo(got[0].dtype).eps + (FP32_SUMS + score) * torch.finfo(torch.float32).eps
    for index, (ours, theirs, truth, size) in enumerate(zip(got, rival, exact, sizes, strict=True)):
        assert ours.shape == truth.shape == size.shape
        assert ours.isfinite().all(), f"result {index} is not finite"
        allowed = 2 * (theirs.double() - truth).abs().max() + share * size
        wrong = (ours.double() - truth).abs()
        worst = (wrong - allowed).argmax()
        assert (wrong <= allowed).all(), (
            f"result {index} (0 is the output) is wrong by {wrong.flatten()[worst]:.2e} "
            f"at its element {worst}, allowed {allowed.flatten()[worst]:.2e}"
        )
