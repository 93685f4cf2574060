"""What a case leaves behind is found, and a worker that was changed is replaced."""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vitbench.bench import isolation, predict
from vitbench.bench.messages import Result
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.bench.worker import Worker
from vitbench.trace.tracer import Tracer


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch._C._set_mkldnn_enabled(True)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: torch.set_default_dtype(torch.float64), "the default dtype"),
        (lambda: torch.set_grad_enabled(False), "gradients"),
        (lambda: torch._C._set_mkldnn_enabled(False), "oneDNN"),
    ],
)
def test_a_switch_that_was_left_is_named(change: Callable[[], object], name: str) -> None:
    before = isolation.state()
    assert isolation.changed(before) == []
    change()
    assert isolation.changed(before) == [name]


def test_a_mode_that_is_still_entered_is_named() -> None:
    before = isolation.state()
    with FakeTensorMode():
        assert isolation.changed(before) == ["the dispatch modes"]
    with torch.device("meta"):
        assert set(isolation.changed(before)) == {"the default device", "the function modes"}


@pytest.mark.parametrize("mode", [FakeTensorMode, Tracer])
def test_caches_of_libraries_forget_tensors_without_data(
    mode: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    isolation.forget()

    @functools.lru_cache
    def table(size: int) -> torch.Tensor:
        return torch.empty(size)

    table.__module__ = "transformers.models.some"
    monkeypatch.setitem(sys.modules, table.__module__, ModuleType(table.__module__))  # imported meanwhile
    before = isolation.fakes_held()  # by what other tests compiled in this process
    with mode():
        table(3)
    assert isolation.fakes_held() > before
    isolation.forget()
    assert isolation.fakes_held() <= before
    assert table.cache_info().currsize == 0


CASE = Case("resnet18", "eager", "infer", "fp32", "nchw", (32, 32), 1, "cpu")


@pytest.mark.parametrize("leaves", [True, False])
def test_a_worker_that_a_failing_case_changed_is_to_be_replaced(leaves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        if leaves:
            torch.set_default_dtype(torch.float64)
        raise RuntimeError("cannot be counted")

    monkeypatch.setattr(predict, "count", fail)
    monkeypatch.setattr(isolation, "fakes_held", lambda: 0)  # those of other tests, in this process
    told: list[Any] = []
    worker = Worker(SweepOptions(passes=()), told.append)
    worker.run_group([CASE])
    (result,) = (one for one in told if isinstance(one, Result))
    assert (result.found.status, "cannot be counted" in result.found.reason) == ("error", True)
    assert worker.poisoned is leaves


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides itself what it keeps")
def test_freed_memory_between_blocks_that_live_on_is_given_back() -> None:
    blocks = [torch.ones(2**14) for _ in range(3200)]  # 64 KiB each, from the heap: 200 MiB
    survivors = blocks[::100]
    held = resident_mib()
    del blocks
    isolation.forget()
    assert resident_mib() < held - 150
    assert all(bool((block == 1).all()) for block in survivors)
