"""Attention kernels read nothing behind the end of their inputs. Needs the CPU's protected pages: the interpreter."""

from __future__ import annotations

import ctypes
import signal

import pytest
import torch
from torch import Tensor

from ..guarded import end_of_child, guarded
from .problems import Problem, bias_problem, gated_problem, relative_problem

SHAPES = {
    torch.float16: ((1, 1, 1, 1, 17), (2, 1, 65, 50, 24), (1, 1, 17, 130, 33), (1, 1, 49, 49, 32)),
    torch.float32: ((1, 1, 33, 40, 17),),
}


def forward_and_backward(problem: Problem) -> None:
    inputs: list[Tensor] = [guarded(x.contiguous()).requires_grad_() for x in problem.inputs]
    problem.kernel(*inputs).backward(guarded(problem.grad.contiguous()))


@pytest.fixture(autouse=True)
def _on_the_cpu(device: str) -> None:
    if device != "cpu":
        pytest.skip("a GPU has no pages that end a process")


def test_a_read_behind_the_end_is_seen() -> None:
    tensor = guarded(torch.zeros(5))
    assert end_of_child(lambda: ctypes.string_at(tensor.data_ptr(), 20)) == 0
    assert end_of_child(lambda: ctypes.string_at(tensor.data_ptr(), 21)) == -signal.SIGSEGV


@pytest.mark.parametrize("dtype", SHAPES, ids=str)
def test_bias_attention_reads_its_inputs_alone(dtype: torch.dtype) -> None:
    for shape in SHAPES[dtype]:
        problem = bias_problem(*shape, dtype, "cpu", packed=False)
        assert end_of_child(lambda problem=problem: forward_and_backward(problem)) == 0, shape


def test_relative_and_gated_attention_read_their_inputs_alone() -> None:
    for problem in (
        relative_problem(1, 1, (8, 9), 32, torch.float16, "cpu"),
        gated_problem(1, 2, 70, 48, torch.float16, "cpu"),
    ):
        assert end_of_child(lambda problem=problem: forward_and_backward(problem)) == 0
