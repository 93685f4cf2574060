"""What becomes of a case that raises: only what is refused by name is unsupported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vitbench.bench import command, predict, sweep, worker
from vitbench.bench.build import Workload
from vitbench.bench.check import Checker
from vitbench.bench.failures import classify
from vitbench.bench.messages import Message, Phase, Result
from vitbench.bench.options import BenchOptions, SweepOptions
from vitbench.bench.plan import Case
from vitbench.errors import Unsupported
from vitbench.ops import bundle
from vitbench.results import journal
from vitbench.results.row import Found

CASES = [Case("resnet18", "eager", "infer", "fp32", "nchw", (32, 32), batch, "cpu") for batch in (1, 2)]


class InThisProcess:
    """As LocalExecutor, with a worker that sees what a test has patched."""

    def __init__(self, options: SweepOptions, on_phase: Callable[[Phase], None]) -> None:
        self.told: list[Message] = []
        self.worker = worker.Worker(options, self.told.append)

    def submit(self, cases: list[Case]) -> Future[list[Result]]:
        self.told.clear()
        self.worker.run_group(cases)
        future: Future[list[Result]] = Future()
        future.set_result([message for message in self.told if isinstance(message, Result)])
        return future

    def close(self) -> None: ...

    def kill(self) -> None: ...


@pytest.fixture
def failing_counter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What counting on the meta device came to with a CUDA build of torch 2.11: torch's own words and class."""

    def count(model: nn.Module, resolution: object) -> None:
        raise NotImplementedError("convolution_overrideable not implemented")

    monkeypatch.setattr("vitbench.measure.flops.count", count)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where nothing was counted before
    monkeypatch.setattr(sweep, "LocalExecutor", InThisProcess)
    predict.count.cache_clear()
    yield
    predict.count.cache_clear()


@pytest.mark.usefixtures("failing_counter")
def test_a_failing_counter_is_an_error_that_is_told_once_and_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.csv"
    given = BenchOptions(model="resnet18", resolution="32", batch="1,2", impl="eager", device="cpu", out=out)
    assert command.bench(given) == 1
    reason = "NotImplementedError: convolution_overrideable not implemented"
    assert [(row.status, row.reason) for row in journal.read(out)] == [("error", reason)] * 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"nothing was measured: all 2 cases are error: {reason}; ")
    assert "vitbench doctor" in last


def test_errors_of_our_own_are_errors_whatever_torch_calls_them() -> None:
    assert classify(RuntimeError("no second derivative")) == ("error", "RuntimeError: no second derivative")
    # What torch raised in a counter of ours, word for word; so the class alone does not make a case "unsupported".
    assert classify(NotImplementedError("convolution_overrideable not implemented"))[0] == "error"
    assert classify(RuntimeError("\"abs\" not implemented for 'Half'"))[0] == "error"
    assert classify(Unsupported("FlexAttention has no backward pass")) == (
        "unsupported",
        "FlexAttention has no backward pass",
    )


class Raising(nn.Module):
    """A model that torch cannot run."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [  # classes and words are torch's, where it has no kernel
    RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'"),
    NotImplementedError("Could not run 'aten::_foreach' with arguments from the 'CUDA' backend."),
    NotImplementedError("convolution_overrideable not implemented"),
])  # fmt: skip
def test_an_operator_that_torch_lacks_is_a_limit_of_the_case_only_where_the_case_runs(error: Exception) -> None:
    workload = Workload()
    checker = Checker(workload)
    case = CASES[0]
    named = "convolution_overrideable" not in str(error)
    with pytest.raises(Unsupported if named else NotImplementedError) as raised:
        checker.check(case, Raising(error), workload.input(case, torch.float32), Found())
    assert classify(raised.value)[0] == ("unsupported" if named else "error")


def test_what_flex_attention_refuses_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise NotImplementedError("no such mask")  # FlexAttention's class for what it refuses

    monkeypatch.setattr(bundle, "_compiled_flex", lambda: refuse)
    q = torch.ones(1, 1, 2, 4)
    with torch.no_grad(), pytest.raises(Unsupported, match="FlexAttention: no such mask"):
        bundle.flex_attention(q, q, q)
