"""relative_attention against fp64: in Triton's interpreter, or on a GPU with --device cuda."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vitkernels import expand_relative_bias, relative_attention

from .accuracy import run
from .problems import check, relative_problem


@pytest.mark.parametrize(
    "grid",
    [pytest.param((7, 7), marks=[pytest.mark.smoke, pytest.mark.fast]), (14, 14), (5, 9), (1, 20), (17, 13)],
    ids=str,
)
def test_relative_attention_matches_fp64(grid: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    B, H = (2, 2) if grid[0] < 8 else (1, 1)
    check(relative_problem(B, H, grid, 32, dtype, device))


def test_large_scores_leave_gradients_digits_where_lse_is_folded_into_products(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    torch.manual_seed(0)
    problem = relative_problem(2, 1, (9, 8), 32, torch.float16, device)
    problem.inputs[0] *= 60
    problem.inputs[1] += 3  # every score, and so lse, is in the hundreds
    check(problem)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(h=st.integers(1, 9), w=st.integers(1, 9), B=st.integers(1, 3), D=st.integers(16, 40))
def test_relative_attention_on_random_shapes(device: str, h: int, w: int, B: int, D: int) -> None:
    torch.manual_seed(0)
    check(relative_problem(B, 2, (h, w), D, torch.float32, device))


def test_expanded_bias_is_the_table_in_log2_with_hugely_negative_padding(device: str) -> None:
    table = torch.randn(5 * 3, 2, device=device)
    expanded = expand_relative_bias(table, (3, 2), torch.float32)
    assert expanded.shape == (2, 6, 16)
    assert (expanded[..., 6:] < -1e29).all()
    # Query (2, 0) is token 4, key (0, 1) is token 1: offset (2, -1), row (2 + 2) * 3 + (-1 + 1).
    torch.testing.assert_close(expanded[:, 4, 1], table[12] * 1.4426950408889634)


def test_expanded_bias_gives_the_same_output_without_the_table(device: str) -> None:
    torch.manual_seed(0)
    q, k, v, table = relative_problem(2, 2, (4, 5), 32, torch.float32, device).inputs
    expanded = expand_relative_bias(table, (4, 5), q.dtype)
    assert torch.equal(
        relative_attention(q, k, v, table, (4, 5)), relative_attention(q, k, v, table, (4, 5), expanded=expanded)
    )


def test_frozen_table_gets_no_gradient(device: str) -> None:
    torch.manual_seed(0)
    problem = relative_problem(1, 1, (4, 5), 32, torch.float32, device)
    leaves = [x.detach().requires_grad_(index < 3) for index, x in enumerate(problem.inputs)]
    problem.kernel(*leaves).backward(problem.grad)
    want = run(problem.reference, problem.inputs, problem.grad)
    assert leaves[3].grad is None
    torch.testing.assert_close(leaves[0].grad, want[1], atol=1e-5, rtol=1e-4)
