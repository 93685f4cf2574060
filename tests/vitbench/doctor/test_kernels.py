"""Every kernel is launched, a wrong one is caught, and what hangs or dies is a line."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from triton.runtime.interpreter import GridExecutor

from vitbench.audit.registry import launches
from vitbench.doctor import kernels
from vitbench.doctor import launches as tried_launches
from vitbench.doctor.cases import TRIED
from vitbench.doctor.check import FAILED, LATE, OK
from vitbench.doctor.kernels import check_kernels
from vitbench.doctor.launches import launch
from vitbench.process import Process

#: Launched by the `wide` cases alone, which a GPU runs.
WIDE = {"_bwd_whole_kernel", "_pad_kernel"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the kernels that the interpreter runs."""
    names: set[str] = set()
    run = GridExecutor.__call__

    @functools.wraps(run)
    def recorded(self: Any, *given: Any, **named: Any) -> None:
        names.add(self.fn.__name__)
        run(self, *given, **named)

    monkeypatch.setattr(GridExecutor, "__call__", recorded)
    return names


def test_together_they_launch_every_kernel(launched: set[str], request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--device") != "cpu":
        pytest.skip("names are recorded in the interpreter")
    for tried in TRIED:
        for pass_ in () if tried.wide else tried.passes:
            check = launch(tried, pass_, "cpu")
            assert check.result == OK, check
    every = {one.kernel.__name__ for one in launches(["vitkernels"], 90)}
    assert every - launched == WIDE


def test_a_wrong_kernel_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tried_launches.attention.gated_attention
    monkeypatch.setattr(tried_launches.attention, "gated_attention", lambda *given: 1.01 * right(*given))
    gated = next(tried for tried in TRIED if tried.op == "gated_attention")
    check = launch(gated, "fwd+bwd", "cpu")
    assert check.result == FAILED
    assert "fused is incorrect: error" in check.detail


def planted(program: str) -> Any:
    def start(command: list[str], **how: Any) -> Process:
        return Process([command[0], "-c", program], **how)

    return start


@pytest.mark.parametrize(("program", "result", "detail"), [
    ("import os; os.abort()", FAILED, "killed by SIGABRT: no output"),
    ("import time; time.sleep(600)", LATE, "not through after 1 s"),
])  # fmt: skip
def test_a_process_that_dies_or_hangs_is_a_line(
    program: str, result: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "Process", planted(program))
    (check,) = check_kernels("cpu", 1.0 if result == LATE else 60.0)
    assert (check.what, check.result, check.detail) == ("kernels", result, detail)
