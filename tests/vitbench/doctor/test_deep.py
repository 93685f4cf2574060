"""The first minute: each thing that vitbench does, once, in a table with an exit code."""

from __future__ import annotations

from functools import partial

import pytest
from torch import nn

from vitbench.doctor import command, deep
from vitbench.doctor.check import ABSENT, FAILED, LATE, OK, Check
from vitbench.doctor.options import DoctorOptions

#: Seconds for a machine that runs a suite besides, on which starting a worker alone may take a minute.
BUSY = 600.0


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have tests of their own, in test_kernels.py."""
    monkeypatch.setattr(deep, "check_kernels", lambda device, seconds: iter([Check("kernels", OK, seconds, "")]))


def test_each_thing_is_tried_once() -> None:
    found = list(deep.checks("cpu", BUSY))
    assert [check.what for check in found] == [
        "count", "predict", "build", "verify", "memory", "time", "energy", "a row from a worker", "kernels",
    ]  # fmt: skip
    assert {check.result for check in found if check.what != "energy"} == {OK}, found
    assert next(check.result for check in found if check.what == "energy") in (OK, ABSENT)
    assert BUSY / 2 <= found[-1].seconds <= BUSY, "what is left of the time, but at least half of it"


@pytest.fixture
def failing_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(model: nn.Module, resolution: object) -> None:
        raise RuntimeError("no count of this operator")

    monkeypatch.setattr("vitbench.measure.flops.count", count)


@pytest.mark.usefixtures("failing_counter")
def test_what_fails_is_told_and_the_rest_is_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deep, "checks", partial(deep.checks, seconds=BUSY))
    assert command.run(DoctorOptions(deep=True, device="cpu")) == 1
    lines = capsys.readouterr().out.splitlines()
    (count,) = (line for line in lines if line.startswith("count "))
    assert "FAILED" in count
    assert count.endswith("RuntimeError: no count of this operator")
    assert any(line.startswith("time ") and " ok " in line for line in lines)
    assert lines[-1] == "1 checks failed"


@pytest.mark.parametrize(("results", "code"), [([OK, ABSENT], 0), ([OK, FAILED], 1), ([LATE], 1)])
def test_the_exit_code_is_of_what_failed(results: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check("a thing", result, 1.0, "") for result in results]
    monkeypatch.setattr(deep, "checks", lambda device: iter(checks))
    assert command.run(DoctorOptions(deep=True, device="cpu")) == code
    assert command.run(DoctorOptions(device="cpu")) == 0
