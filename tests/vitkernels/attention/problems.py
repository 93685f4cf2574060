"""One call of an attention operation each, and how its results are judged against fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from vitkernels import (
    bias_attention,
    bias_attention_reference,
    gated_attention,
    gated_attention_reference,
    relative_attention,
    relative_attention_reference,
)
from vitkernels.attention import bias, gated, relative
from vitkernels.runtime.call import Call
from vitkernels.runtime.call import run_all as launch_all

from .accuracy import assert_accurate, run, sizes_of_gated_terms, sizes_of_terms

MODULES = {"bias_attention": bias, "relative_attention": relative, "gated_attention": gated}


def naive(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None = None) -> Tensor:
    """Every step in the inputs' own dtype: the error that users of plain PyTorch live with."""
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (scores + bias.to(q.dtype)).softmax(-1) @ v


def naive_gated(
    q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor, scale: float | None = None
) -> Tensor:
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    g = gate.to(q.dtype).sigmoid()[:, None, None]
    return ((1 - g) * scores.softmax(-1) + g * positional.to(q.dtype).softmax(-1)) @ v


def relative_index(h: int, w: int, device: str | torch.device) -> Tensor:
    """[h * w, h * w]: the table's row for query i and key j."""
    return torch.tensor(
        [[(i // w - j // w + h - 1) * (2 * w - 1) + i % w - j % w + w - 1 for j in range(h * w)] for i in range(h * w)],
        device=device,
    )


def naive_relative(q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    return naive(q, k, v, table[relative_index(*grid, q.device)].permute(2, 0, 1))


def sizes_of_relative_terms(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, grad: Tensor, grid: tuple[int, int]
) -> tuple[list[Tensor], float]:
    index = relative_index(*grid, q.device)
    (*sizes, dbias), score = sizes_of_terms(q, k, v, table[index].permute(2, 0, 1), grad, q.shape[-1] ** -0.5)
    squares = torch.zeros_like(table).index_add_(0, index.flatten(), dbias.square().flatten(1).mT)
    return [*sizes, squares.sqrt()], score


@dataclass
class Problem:
    """One call: the kernel, its reference, the low-precision rival, the sizes of its terms, and what goes in.

    Of all inputs gradients are asked for; `sizes(*inputs, grad)` is as `sizes_of_terms`.
    """

    kernel: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    rival: Callable[..., Tensor]
    sizes: Callable[..., tuple[list[Tensor], float]]
    inputs: list[Tensor]
    grad: Tensor


def tokens(B: int, H: int, n: int, D: int, dtype: torch.dtype, device: str, packed: bool) -> Tensor:
    """[B, H, n, D]; packed ones are every third slice of a projection's output, with a contiguous last dim."""
    if packed:
        return torch.randn(B, n, 3, H, D, device=device).to(dtype).permute(2, 0, 3, 1, 4)[1]
    return torch.randn(B, H, n, D, device=device).to(dtype)


def bias_problem(
    B: int,
    H: int,
    N: int,
    M: int,
    D: int,
    dtype: torch.dtype,
    device: str,
    packed: bool = True,
    scale: float | None = None,
) -> Problem:
    q, grad = tokens(B, H, N, D, dtype, device, packed), tokens(B, H, N, D, dtype, device, packed=False)
    k, v = (tokens(B, H, M, D, dtype, device, packed) for _ in range(2))
    bias = torch.randn(H, N, M, device=device)
    return Problem(
        lambda *x: bias_attention(*x, scale),
        lambda *x: bias_attention_reference(*x, scale),
        lambda *x: naive(*x, scale),
        lambda *x: sizes_of_terms(*x, D**-0.5 if scale is None else scale),
        [q, k, v, bias],
        grad,
    )


def relative_problem(B: int, H: int, grid: tuple[int, int], D: int, dtype: torch.dtype, device: str) -> Problem:
    q, k, v, grad = (tokens(B, H, grid[0] * grid[1], D, dtype, device, packed=True) for _ in range(4))
    table = torch.randn((2 * grid[0] - 1) * (2 * grid[1] - 1), H, device=device)
    return Problem(
        lambda *x: relative_attention(*x, grid),
        lambda *x: relative_attention_reference(*x, grid),
        lambda *x: naive_relative(*x, grid),
        lambda *x: sizes_of_relative_terms(*x, grid),
        [q, k, v, table],
        grad,
    )


def gated_problem(
    B: int, H: int, N: int, D: int, dtype: torch.dtype, device: str, scale: float | None = None
) -> Problem:
    q, k, v, grad = (tokens(B, H, N, D, dtype, device, packed=True) for _ in range(4))
    inputs = [q, k, v, torch.randn(H, N, N, device=device), torch.randn(H, device=device)]
    return Problem(
        lambda *x: gated_attention(*x, scale),
        lambda *x: gated_attention_reference(*x, scale),
        lambda *x: naive_gated(*x, scale),
        lambda *x: sizes_of_gated_terms(*x, D**-0.5 if scale is None else scale),
        inputs,
        grad,
    )


def check(problem: Problem) -> None:
    """Every result is finite, of the right shape and dtype, and as accurate as `assert_accurate` demands."""
    got = run(problem.kernel, problem.inputs, problem.grad)
    rival = run(problem.rival, problem.inputs, problem.grad)
    inputs, grad = [x.double() for x in problem.inputs], problem.grad.double()
    assert [x.dtype for x in got] == [problem.grad.dtype, *(x.dtype for x in problem.inputs)]
    assert_accurate(got, rival, run(problem.reference, inputs, grad), *problem.sizes(*inputs, grad))


def launches(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """A list that fills with the launches that the operations make from now on."""
    made: list[Call] = []

    def run_all(calls: list[Call]) -> None:
        made.extend(calls)
        launch_all(calls)

    for module in MODULES.values():
        monkeypatch.setattr(module, "run_all", run_all)
    return made
