"""Rows whose keys are all masked: the same for every number of keys, and in every kernel that a shape gets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vitkernels import bias_attention_reference, gated_attention, relative_attention

from .accuracy import assert_accurate, run, sizes_of_terms
from .problems import bias_problem, gated_problem, relative_problem

LOWEST = torch.finfo(torch.float32).min
#: B, H, N, M, D, dtype, and how many programs are thought to be enough: which kernels serve it.
SHAPES = {
    "scores held, keys beyond M": (2, 1, 20, 30, 32, torch.float16, 384),
    "scores held, no key beyond M": (1, 1, 9, 64, 32, torch.float16, 384),
    "bias held, keys of one tile": (2, 1, 20, 49, 64, torch.float16, 384),
    "bias held, several tiles of queries": (4, 1, 70, 25, 32, torch.float16, 1),
    "streamed, few queries in the last tile": (1, 1, 264, 66, 32, torch.float16, 1),
    "streamed, keys beyond M": (3, 1, 17, 290, 32, torch.float16, 384),
    "streamed in fp32, whole blocks": (1, 1, 9, 64, 32, torch.float32, 384),
    "streamed in fp32, keys beyond M": (1, 2, 9, 45, 32, torch.float32, 384),
}


def fully_masked(bias: Tensor) -> Tensor:
    return bias.amax(-1, keepdim=True) < -1e8


def mean_where_masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention in which a fully masked row weighs all keys alike, and still passes its scores' gradients on."""
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
    return torch.where(fully_masked(bias), scores - scores.detach(), scores).softmax(-1) @ v


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_row_of_low_finite_numbers_is_the_mean_of_its_values(
    shape: tuple[int, int, int, int, int, torch.dtype, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    *sizes, dtype, programs = shape
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", programs)
    torch.manual_seed(0)
    problem = bias_problem(*sizes, dtype, device)
    bias = problem.inputs[3]
    bias[:, 1], bias[:, 3], bias[:, -1] = LOWEST, -1e9, LOWEST  # rows beyond N repeat the last one
    bias[:, 2, sizes[3] // 2 :] = float("-inf")
    exact, grad = [x.double() for x in problem.inputs], problem.grad.double()
    truth = run(mean_where_masked, exact, grad)
    unmasked = torch.where(fully_masked(exact[3]), 0.0, exact[3])
    terms = sizes_of_terms(*exact[:3], unmasked, grad, sizes[4] ** -0.5)
    # No rival: in half precision these numbers are infinite.
    assert_accurate(run(problem.kernel, problem.inputs, problem.grad), truth, truth, *terms)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_row_of_minus_infinity_is_no_number_and_leaves_the_others(
    shape: tuple[int, int, int, int, int, torch.dtype, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    *sizes, dtype, programs = shape
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", programs)
    torch.manual_seed(0)
    problem = bias_problem(*sizes, dtype, device)
    problem.inputs[3][:, -1] = float("-inf")
    got = run(problem.kernel, problem.inputs, problem.grad)
    want = run(bias_attention_reference, [x.float() for x in problem.inputs], problem.grad.float())
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
    assert want[0][:, :, -1].isnan().all()
    assert want[0][:, :, :-1].isfinite().all()


@pytest.mark.parametrize("n", [30, 64])
@pytest.mark.parametrize("low", [LOWEST, -1e9])
def test_gated_attention_takes_the_mean_where_positions_are_masked(n: int, low: float, device: str) -> None:
    torch.manual_seed(0)
    problem = gated_problem(1, 2, n, 32, torch.float32, device)
    problem.inputs[3][:, 1] = problem.inputs[3][:, -1] = low
    got = run(problem.kernel, problem.inputs, problem.grad)
    inputs, grad = [x.double() for x in problem.inputs], problem.grad.double()
    problem.inputs[3][:, 1] = problem.inputs[3][:, -1] = 0.0  # equal positions, as those are
    terms, score = problem.sizes(*(x.double() for x in problem.inputs), grad)
    assert_accurate(
        got, run(problem.rival, problem.inputs, problem.grad), run(problem.reference, inputs, grad), terms, score
    )


def test_gated_attention_is_no_number_where_positions_are_minus_infinity(device: str) -> None:
    torch.manual_seed(0)
    problem = gated_problem(1, 1, 30, 32, torch.float32, device)
    problem.inputs[3][:, 4] = float("-inf")
    out = gated_attention(*problem.inputs)
    assert out[:, :, 4].isnan().all()
    assert out[:, :, :4].isfinite().all()
    assert out[:, :, 5:].isfinite().all()


@pytest.mark.parametrize(
    ("grid", "dtype", "low"),
    [
        ((5, 6), torch.float16, LOWEST),
        ((5, 6), torch.float16, -5e4),
        ((5, 6), torch.float32, LOWEST),
        ((5, 6), torch.float32, -1e9),
        ((9, 8), torch.float16, -1e9),  # queries held: lse goes through products in parts
    ],
    ids=str,
)
def test_a_table_whose_entries_are_all_low_is_no_bias(
    grid: tuple[int, int], dtype: torch.dtype, low: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 tokens in tiles of 32 and more, 72 in tiles of 64 and 16: no key beyond them counts."""
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    torch.manual_seed(0)
    problem = relative_problem(1, 2, grid, 32, dtype, device)
    problem.inputs[3][:, 0] = low
    got = run(problem.kernel, problem.inputs, problem.grad)
    problem.inputs[3][:, 0] = 0.0
    inputs, grad = [x.double() for x in problem.inputs], problem.grad.double()
    terms, score = problem.sizes(*inputs, grad)
    rival = run(problem.rival, problem.inputs, problem.grad)
    assert_accurate(got, rival, run(problem.reference, inputs, grad), terms, score + 65504)


def test_a_table_of_numbers_beyond_half_precision_stays_finite(device: str) -> None:
    torch.manual_seed(0)
    q, k, v, table = relative_problem(1, 2, (4, 5), 32, torch.float16, device).inputs
    table[:] = 5e4  # no bias: all keys have it
    wrong = (relative_attention(q, k, v, table, (4, 5)) - relative_attention(q, k, v, table * 0, (4, 5))).abs()
    # A score of 65504 has 2^-8 as its last digit in fp32.
    assert wrong.max() <= 2.0**-7 * v.abs().max()


def test_a_table_of_minus_infinity_is_no_number(device: str) -> None:
    torch.manual_seed(0)
    q, k, v, table = relative_problem(1, 2, (5, 6), 32, torch.float16, device).inputs
    table[:, 0] = float("-inf")
    out = relative_attention(q, k, v, table, (5, 6))
    assert out[:, 0].isnan().all()
    assert out[:, 1].isfinite().all()
