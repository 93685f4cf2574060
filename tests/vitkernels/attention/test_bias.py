"""bias_attention against fp64: in Triton's interpreter, or on a GPU with --device cuda."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vitkernels import bias_attention, bias_attention_reference
from vitkernels.attention.forward.plan import Blocks

from .accuracy import run
from .problems import bias_problem, check, gated_problem

BIAS_SHAPES = {
    "window-49": (3, 2, 49, 49, 32),
    "coatnet-196": (1, 1, 196, 196, 32),
    "beit-197": (1, 1, 197, 197, 64),
    "coatnet-144": (1, 1, 144, 144, 32),
    "long-keys": (3, 1, 33, 300, 32),
    "cmt-d-384": (3, 1, 70, 144, 64),
    "cmt-few-keys": (2, 1, 200, 49, 64),
    "cmt-ti-46": (2, 1, 70, 25, 46),
    "cmt-xs-52": (1, 2, 66, 36, 52),
    "cmt-b-76": (2, 1, 65, 64, 76),
    "wide-128": (1, 1, 40, 70, 128),
    "one-query": (2, 1, 1, 17, 16),
    "one-key": (2, 1, 17, 1, 16),
}


@pytest.mark.parametrize("shape", BIAS_SHAPES.values(), ids=BIAS_SHAPES)
def test_bias_attention_matches_fp64(shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    check(bias_problem(*shape, dtype, device))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 5), H=st.integers(1, 2), N=st.integers(1, 90), M=st.integers(1, 150), D=st.integers(16, 80),
    packed=st.booleans(), half=st.booleans(), scale=st.sampled_from([None, 0.3]),
)  # fmt: skip
def test_bias_attention_on_random_shapes(
    device: str, B: int, H: int, N: int, M: int, D: int, packed: bool, half: bool, scale: float | None
) -> None:
    torch.manual_seed(0)
    check(bias_problem(B, H, N, M, D, torch.float16 if half else torch.float32, device, packed, scale))


def test_masked_keys_get_no_weight_and_no_gradient(device: str) -> None:
    torch.manual_seed(0)
    problem = bias_problem(2, 1, 40, 90, 32, torch.float32, device)
    problem.inputs[3][:, :, 60:] = float("-inf")
    got = run(problem.kernel, problem.inputs, problem.grad)
    exact = run(problem.reference, [x.double() for x in problem.inputs], problem.grad.double())
    for ours, truth in zip(got, exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=1e-5, rtol=1e-4)
    assert not got[2][:, :, 60:].any()
    assert not got[4][:, :, 60:].any()


@pytest.mark.parametrize(("n", "masked", "d"), [(196, 128, 32), (90, 64, 32), (100, 64, 64), (300, 128, 32)])
def test_a_first_block_of_masked_keys_leaves_the_others(n: int, masked: int, d: int, device: str) -> None:
    """Half of the queries see only the last keys, the others only the first, as with two regions of a window."""
    torch.manual_seed(0)
    problem = bias_problem(1, 1, n, n, d, torch.float16, device)
    with torch.no_grad():
        problem.inputs[3][:, : n // 2, :masked] = float("-inf")
        problem.inputs[3][:, n // 2 :, masked:] = float("-inf")
    check(problem)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_than_the_current_gpu() -> None:
    torch.manual_seed(0)
    check(bias_problem(2, 1, 49, 49, 32, torch.float16, "cuda:1"))


def test_large_scores_do_not_overflow(device: str) -> None:
    torch.manual_seed(0)
    problem = bias_problem(1, 1, 20, 300, 32, torch.float32, device)
    problem.inputs[0] *= 200
    check(problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("factor", "scale"), [(50, None), (1, 1e4)])
@pytest.mark.parametrize("operation", ["bias", "gated"])
def test_where_softmax_saturates_gradients_are_as_exact_as_the_output_is_rounded(
    operation: str, factor: float, scale: float | None, dtype: torch.dtype, device: str
) -> None:
    """One key has all the weight, and the gradient of its score is the difference of two numbers that are nearly equal.

    Plain PyTorch, which rounds other numbers or overflows, is no measure there: the bound is of rounding alone.
    """
    torch.manual_seed(0)
    if operation == "bias":
        problem = bias_problem(2, 2, 20, 30, 32, dtype, device, scale=scale)
    else:
        problem = gated_problem(2, 2, 20, 32, dtype, device, scale=scale)
    for number in (0, 1):
        problem.inputs[number] = problem.inputs[number] * factor
    problem.rival = problem.reference  # whose error is of fp32 sums
    check(problem)


@pytest.mark.parametrize("shift", [-200, -57, -54, 54, 57, 200])
def test_scores_about_the_edges_of_what_needs_no_maximum(
    monkeypatch: pytest.MonkeyPatch, shift: float, device: str
) -> None:
    """A few rows of one image leave the range that exponentials as they are have, in a program of two images.

    As bf16 has it, which the interpreter cannot compute; fp32 has one image for want of registers alone.
    """
    torch.manual_seed(0)
    blocks = Blocks(rows=32, keys=16, images=2, stages=2)
    monkeypatch.setattr("vitkernels.attention.forward.plan.streamed_blocks", lambda *_: blocks)
    problem = bias_problem(3, 1, 70, 80, 32, torch.float32, device)
    problem.inputs[3][:, 5:9] += shift
    check(problem)
    with torch.no_grad():
        problem.inputs[0][1, :, 5:9] *= 30
        problem.inputs[3][:, 30] = float("-inf")
        problem.inputs[3][:, 30, 1:3] = 4.0
    check(problem)


def test_inputs_whose_last_dim_is_not_contiguous(device: str) -> None:
    torch.manual_seed(0)
    problem = bias_problem(2, 1, 20, 30, 32, torch.float32, device)
    problem.inputs = [x.transpose(-2, -1).contiguous().transpose(-2, -1) for x in problem.inputs]
    problem.grad = problem.grad.transpose(-2, -1).contiguous().transpose(-2, -1)
    check(problem)


def test_expanded_gradient_and_shared_bias(device: str) -> None:
    """A gradient of stride 0 (from a sum) and one bias used by two calls in one graph."""
    torch.manual_seed(0)
    q, k, v, bias = (x.requires_grad_() for x in bias_problem(2, 2, 20, 30, 32, torch.float32, device, False).inputs)
    (bias_attention(q, k, v, bias) + bias_attention(q, v, k, bias)).sum().backward()
    got, bias.grad = bias.grad, None
    (bias_attention_reference(q, k, v, bias) + bias_attention_reference(q, v, k, bias)).sum().backward()
    torch.testing.assert_close(got, bias.grad, atol=1e-5, rtol=1e-4)


def test_frozen_bias_gets_no_gradient(device: str) -> None:
    torch.manual_seed(0)
    problem = bias_problem(1, 1, 20, 20, 32, torch.float32, device)
    leaves = [x.detach().requires_grad_(index < 3) for index, x in enumerate(problem.inputs)]
    problem.kernel(*leaves).backward(problem.grad)
    want = run(problem.reference, problem.inputs, problem.grad)
    assert leaves[3].grad is None
    torch.testing.assert_close(leaves[0].grad, want[1], atol=1e-5, rtol=1e-4)


def test_strides_beyond_32_bits(device: str) -> None:
    if device != "cuda":
        pytest.skip("needs a tensor of 8.6 GB")
    B, N, D = 2, 16384, 16
    base = torch.zeros(B, N, 2**17, device=device, dtype=torch.float16)
    q = base[:, None, :, :D]
    q.copy_(torch.randn(B, 1, N, D, device=device))
    bias = torch.zeros(1, N, 64, device=device)
    k = torch.randn(B, 1, 64, D, device=device).half()
    torch.testing.assert_close(bias_attention(q, k, k, bias), bias_attention(q.contiguous(), k, k, bias))
