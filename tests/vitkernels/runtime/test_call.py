"""Launches that every operation shares."""

from __future__ import annotations

import pytest
import torch
from vitkernels.runtime.call import run_all, sum_parts_call


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("size", "parts", "rows"), [(5, 1, 32), (1000, 40, 32), (16_390, 65, 16), (40_000, 3, 8), (700_000, 2, 1)]
)
def test_partial_results_are_summed(size: int, parts: int, rows: int, dtype: torch.dtype, device: str) -> None:
    """From programs that take 32 parts of 32 numbers at a time to those that take one part of 1024."""
    torch.manual_seed(0)
    values = torch.randn(parts, size, device=device)
    out = torch.full((size,), float("nan"), dtype=dtype, device=device)
    call = sum_parts_call(out, values, "sum")
    assert (call.args["ROWS"], call.args["BLOCK"]) == (rows, 1024 // rows)
    run_all([call])
    want = values.double().sum(0)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=torch.finfo(dtype).eps)
    again = torch.empty_like(out)
    run_all([sum_parts_call(again, values, "sum")])
    assert torch.equal(again, out)


@pytest.mark.parametrize(("parts", "width", "padded"), [(64, 197, 208), (3, 7, 16), (1, 20, 32)])
def test_rows_of_partial_results_may_be_padded(parts: int, width: int, padded: int, device: str) -> None:
    """Padding, which nobody wrote, holds what memory happens to hold."""
    torch.manual_seed(0)
    values = torch.randn(parts, 2, 5, padded, device=device, dtype=torch.float16)
    values[..., width:] = float("nan")
    out = torch.full((2, 5, width), float("nan"), device=device)
    run_all([sum_parts_call(out, values, "sum")])
    torch.testing.assert_close(out, values[..., :width].float().sum(0), atol=1e-5, rtol=1e-6)
