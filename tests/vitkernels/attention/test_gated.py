"""gated_attention against fp64: in Triton's interpreter, or on a GPU with --device cuda."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vitkernels import bias_attention_reference, gated_attention

from .accuracy import run
from .problems import check, gated_problem


@pytest.mark.parametrize(
    ("B", "H", "N", "D"),
    [
        (1, 1, 196, 48),
        (3, 2, 49, 48),
        (1, 1, 230, 64),
        pytest.param(2, 1, 9, 16, marks=[pytest.mark.smoke, pytest.mark.fast]),
    ],
)
def test_gated_attention_matches_fp64(B: int, H: int, N: int, D: int, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    check(gated_problem(B, H, N, D, dtype, device))


def test_a_negative_scale_turns_scores_over(device: str) -> None:
    torch.manual_seed(0)
    check(gated_problem(2, 1, 30, 32, torch.float32, device, scale=-0.3))


@settings(max_examples=4, deadline=None, derandomize=True)
@given(N=st.integers(1, 81), B=st.integers(1, 3), D=st.integers(16, 40))
def test_gated_attention_on_random_shapes(device: str, N: int, B: int, D: int) -> None:
    torch.manual_seed(0)
    check(gated_problem(B, 2, N, D, torch.float32, device))


def test_gate_at_its_ends_is_one_softmax(device: str) -> None:
    torch.manual_seed(0)
    problem = gated_problem(2, 2, 30, 48, torch.float32, device)
    q, k, v, positional, _ = problem.inputs
    for logit, want in (
        (-200.0, bias_attention_reference(q, k, v, torch.zeros_like(positional))),
        (200.0, positional.softmax(-1) @ v),
    ):
        problem.inputs[4] = torch.full((2,), logit, device=device)
        got = run(gated_attention, problem.inputs, problem.grad)
        torch.testing.assert_close(got[0], want, atol=2e-5, rtol=2e-5)
        assert all(x.isfinite().all() for x in got)


@pytest.mark.parametrize("logit", [4.0, 6.0, 8.0, 10.0, -6.0, -10.0, -20.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_gradients_keep_their_digits_as_the_gate_saturates(logit: float, dtype: torch.dtype, device: str) -> None:
    """Each against its own size, however small, and none worse than in plain PyTorch of the same precision."""
    torch.manual_seed(0)
    problem = gated_problem(2, 1, 40, 48, dtype, device)
    problem.inputs[4] = torch.full((1,), logit, device=device)
    got = run(problem.kernel, problem.inputs, problem.grad)
    rival = run(problem.rival, problem.inputs, problem.grad)
    exact = run(problem.reference, [x.double() for x in problem.inputs], problem.grad.double())
    eps = torch.finfo(dtype).eps  # the gate's gradient is a difference of sums that are tens of times its size
    for index, (ours, theirs, truth) in enumerate(zip(got, rival, exact, strict=True)):
        wrong, naive = ((x.double() - truth).norm() / truth.norm() for x in (ours, theirs))
        allowed = min((4 if dtype == torch.float16 else 32) * eps, naive + 4 * eps)
        assert wrong <= allowed, f"result {index} is wrong by {wrong:.1e}, plain PyTorch by {naive:.1e}"


def test_normalising_the_mixed_rows_changes_nothing(device: str) -> None:
    """ConViT divides P by its row sums; the kernel does not, since they are 1."""
    torch.manual_seed(0)
    problem = gated_problem(1, 2, 25, 48, torch.float32, device)
    q, k, v, positional, gate = (x.double() for x in problem.inputs)
    g = gate.sigmoid()[:, None, None]
    p = (1 - g) * (q @ k.transpose(-2, -1) * 48**-0.5).softmax(-1) + g * positional.softmax(-1)
    want = p / p.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(gated_attention(*problem.inputs).double(), want, atol=1e-5, rtol=1e-5)


def test_fp16_scores_far_below_zero_leave_finite_gradients(device: str) -> None:
    """Padding keys score 0; where all real scores are far below, their weight would overflow fp16 if it were kept."""
    torch.manual_seed(0)
    problem = gated_problem(1, 1, 20, 32, torch.float16, device)
    problem.inputs[0] = problem.inputs[0].abs() * 4
    problem.inputs[1] = -problem.inputs[1].abs() * 4
    got = run(problem.kernel, problem.inputs, problem.grad)
    exact = run(problem.reference, [x.double() for x in problem.inputs], problem.grad.double())
    assert all(x.isfinite().all() for x in got)
    torch.testing.assert_close(got[1].double(), exact[1], atol=0.02, rtol=0.05)
