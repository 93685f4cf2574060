"""How long each kernel takes at each case, for `vitbench gate` and `vitbench audit --validate`.

With --device cuda a round is one call between two device events, with the L2 cache flushed before it. With --device cpu
the references run on small shapes, so that the benchmark itself is tested.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from vitbench.kernel_bench.cases import Planned, plan
from vitbench.kernel_bench.group import verified
from vitbench.kernel_bench.problem import Impl
from vitbench.kernel_bench.sweep import exact_fp32
from vitbench.kernel_bench.timing import l2_flush
from vitbench.measure.latency import Clock

# A round of the fixture lasts as long as the clock below advances during it: by the time that the device measured.
_elapsed_s = 0.0


def device_time() -> float:
    return _elapsed_s


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = str(metafunc.config.getoption("--device"))
    found = plan("*", device, ["bf16" if device == "cuda" else "fp32"])
    metafunc.parametrize("planned", found, ids=[planned.id for planned in found])


@pytest.mark.benchmark(timer=device_time)
def test_kernel(benchmark: BenchmarkFixture, planned: Planned, device: str) -> None:
    on_gpu = device == "cuda"
    problem = planned.build()
    impl = problem.impls[0] if on_gpu else Impl("reference", problem.reference)
    clock = Clock(torch.device(device), l2_flush(torch.device(device)))
    with exact_fp32():
        step = verified(problem, impl, planned.dtype, device)

        def timed() -> None:
            global _elapsed_s
            _elapsed_s += clock.time_ms(step) / 1e3

        names = {"kernel": planned.kernel, "case": planned.case, "pass": planned.pass_, "dtype": planned.dtype}
        benchmark.extra_info.update(names, impl=impl.name, launches=impl.launches)
        benchmark.pedantic(timed, rounds=200 if on_gpu else 10, warmup_rounds=10 if on_gpu else 2)
