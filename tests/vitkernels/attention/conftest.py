"""Fixtures of the attention tests: memory that shows what is left unwritten, few programs, the dtypes of a kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """Fills every torch.empty with NaN, so that an output element which no program writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _few_programs_sum(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of partial results by a few programs: a third of the interpreter's time; runtime/test_call.py tries many."""
    if pytestconfig.getoption("--device") == "cpu":
        monkeypatch.setattr("vitkernels.runtime.call._PROGRAMS", 16)


@pytest.fixture(params=list(DTYPES))
def dtype(request: pytest.FixtureRequest, device: str) -> torch.dtype:
    if request.param == "bf16" and device == "cpu":
        pytest.skip("Triton's interpreter computes bf16 as raw 16-bit integers")
    return DTYPES[request.param]
