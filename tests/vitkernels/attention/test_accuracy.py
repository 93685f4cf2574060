"""That the judgement of the attention tests passes what is right and sees what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from vitkernels import bias_attention_reference, gated_attention_reference, relative_attention_reference

from .accuracy import sizes_of_terms
from .problems import Problem, bias_problem, check, gated_problem, relative_problem

pytestmark = pytest.mark.fast

B, H, D, GRID = 4, 2, 32, (14, 10)
N = GRID[0] * GRID[1]
Wrong = Callable[..., Tensor]


def without_a_key(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return bias_attention_reference(q, k[:, :, :-1], v[:, :, :-1], bias[..., :-1])


def without_an_image_in_dbias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    first = bias_attention_reference(q[:1], k[:1], v[:1], bias.detach())
    return torch.cat([first, bias_attention_reference(q[1:], k[1:], v[1:], bias)])


def without_a_query_in_dk(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    last = bias_attention_reference(q[:, :, -1:], k.detach(), v, bias[:, -1:])
    return torch.cat([bias_attention_reference(q[:, :, :-1], k, v, bias[:, :-1]), last], 2)


def with_dtable_one_row_off(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    return relative_attention_reference(q, k, v, table.detach() + (table - table.detach()).roll(1, 0), GRID)


def with_dgate_off(q: Tensor, k: Tensor, v: Tensor, positional: Tensor, gate: Tensor) -> Tensor:
    return gated_attention_reference(q, k, v, positional, gate.detach() + 1.2 * (gate - gate.detach()))


WRONG: dict[str, tuple[str, Wrong]] = {
    "bias-key-dropped": ("bias", without_a_key),
    "bias-scale-1-percent-off": ("bias", lambda *x: bias_attention_reference(*x, 1.01 * D**-0.5)),
    "bias-one-column-off": ("bias", lambda q, k, v, bias: bias_attention_reference(q, k, v, bias.roll(1, -1))),
    "bias-1-percent-off": ("bias", lambda q, k, v, bias: bias_attention_reference(q, k, v, 1.01 * bias)),
    "bias-image-missing-in-dbias": ("bias", without_an_image_in_dbias),
    "bias-query-missing-in-dk": ("bias", without_a_query_in_dk),
    "relative-grid-turned": ("relative", lambda *x: relative_attention_reference(*x, GRID[::-1])),
    "relative-dtable-one-row-off": ("relative", with_dtable_one_row_off),
    "gated-scale-1-percent-off": ("gated", lambda *x: gated_attention_reference(*x, 1.01 * D**-0.5)),
    "gated-gate-5-percent-off": ("gated", lambda *x: gated_attention_reference(*x[:4], 1.05 * x[4])),
    "gated-dgate-20-percent-off": ("gated", with_dgate_off),
    "gated-content-and-position-exchanged": ("gated", lambda *x: gated_attention_reference(*x[:4], -x[4])),
}


def problem_of(operation: str, dtype: torch.dtype) -> Problem:
    """With the reference for a kernel, so that no launch is needed: what is wrong here is planted."""
    torch.manual_seed(0)
    make = {
        "bias": lambda: bias_problem(B, H, N, N, D, dtype, "cpu"),
        "relative": lambda: relative_problem(B, H, GRID, D, dtype, "cpu"),
        "gated": lambda: gated_problem(B, H, N, D, dtype, "cpu"),
    }
    problem = make[operation]()
    problem.kernel = problem.reference
    return problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("operation", ["bias", "relative", "gated"])
def test_the_reference_in_low_precision_is_accurate(operation: str, dtype: torch.dtype) -> None:
    check(problem_of(operation, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_seen(name: str, dtype: torch.dtype) -> None:
    operation, wrong = WRONG[name]
    problem = problem_of(operation, dtype)
    problem.kernel = wrong
    with pytest.raises(AssertionError, match="is wrong by"):
        check(problem)


@pytest.mark.parametrize("index", range(5))
def test_an_error_in_one_element_is_seen(index: int) -> None:
    problem = problem_of("bias", torch.float16)

    class Off(torch.autograd.Function):
        """The reference with one element of one result moved by a hundredth of its largest."""

        @staticmethod
        def forward(ctx, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return moved(problem.reference(*inputs)) if index == 0 else problem.reference(*inputs)

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
                grads = torch.autograd.grad(problem.reference(*leaves), leaves, grad)
            return tuple(moved(g) if index == place else g for place, g in enumerate(grads, 1))

    def moved(result: Tensor) -> Tensor:
        result = result.contiguous()
        result.view(-1)[7] += 0.02 * result.abs().max()
        return result

    problem.kernel = Off.apply
    with pytest.raises(AssertionError, match=rf"result {index} .* at its element 7"):
        check(problem)


def test_terms_of_a_single_key_are_counted_though_their_sum_is_zero() -> None:
    """One key has all the weight whatever its score: dq, dk and dbias are exactly zero, and rounding leaves a rest."""
    q, k, v, bias, grad = (torch.full(shape, 2.0).double() for shape in ((1, 1, 3, 16),) * 5)
    sizes, score = sizes_of_terms(q, k[:, :, :1], v[:, :, :1], bias[0, :, :, :1], grad, 0.25)
    assert score == 0.25 * 64 + 2
    # |grad| |v| = 64 comes twice, with opposite signs; times 2 * 0.25 it is dq, over three queries dk.
    assert [size.unique().item() for size in sizes] == pytest.approx([2, 64, 64 * 3**0.5, 2 * 3**0.5, 128])
