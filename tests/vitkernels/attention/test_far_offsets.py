"""Views whose rows or images lie so far apart that offsets need 64 bits."""

from __future__ import annotations

import pytest
import torch
from vitkernels import bias_attention, relative_attention

from ..untouched import untouched
from .accuracy import run
from .problems import bias_problem, relative_problem


@pytest.mark.parametrize(("m", "dtype"), [(25, torch.float16), (290, torch.float16), (33, torch.float32)], ids=str)
def test_bias_rows_far_apart(m: int, dtype: torch.dtype, device: str) -> None:
    """Nine rows, 2^28 elements apart."""
    torch.manual_seed(0)
    problem = bias_problem(1, 1, 9, m, 32, dtype, device)
    far = untouched(2**31 + 2**10, torch.float16, device).as_strided((1, 9, m), (0, 2**28, 1))
    dense = problem.inputs[3].half()
    far.copy_(dense)
    want = run(bias_attention, [*problem.inputs[:3], dense], problem.grad)
    got = run(bias_attention, [*problem.inputs[:3], far], problem.grad)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_images_far_apart(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of one program, and the third, 2^30 elements apart."""
    monkeypatch.setattr("vitkernels.attention.forward.plan.multiprocessors_of", lambda *_: 1)
    torch.manual_seed(0)
    problem = bias_problem(3, 1, 9, 220, 32, torch.float16, device)
    far = untouched(2**31 + 2**10, torch.float16, device).as_strided((3, 1, 9, 32), (2**30, 0, 32, 1))
    far.copy_(problem.inputs[0])
    got = run(bias_attention, [far, *problem.inputs[1:]], problem.grad)
    want = run(bias_attention, problem.inputs, problem.grad)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_table_rows_far_apart(device: str) -> None:
    torch.manual_seed(0)
    q, k, v, table = relative_problem(1, 1, (2, 3), 32, torch.float16, device).inputs
    far = untouched(2**31 + 2**28, torch.float16, device).as_strided((15, 1), (2**31 // 14, 0))
    far.copy_(table)
    want = relative_attention(q, k, v, table.half(), (2, 3))
    assert torch.equal(relative_attention(q, k, v, far, (2, 3)), want)
