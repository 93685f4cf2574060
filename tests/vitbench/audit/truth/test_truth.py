"""Published kernel times: every one can be modelled, statistics are those of the committed file, and it is current."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import triton

from vitbench import cards
from vitbench.audit.truth import times
from vitbench.audit.truth.__main__ import farthest
from vitbench.audit.truth.kernels import masked_matmul
from vitbench.audit.truth.launches import alternatives
from vitbench.audit.truth.points import BACK_TO_BACK, DO_BENCH, FITTED, LEFT_OUT, TEST, published
from vitbench.audit.truth.times import Time

POINTS = published()
COMMITTED = Path(__file__).parents[4] / "results" / "truth" / "kernel-times.csv"


@pytest.fixture(scope="module")
def committed() -> list[Time]:
    return times.TABLE.read(COMMITTED)


@pytest.mark.fast
def test_every_point_says_where_it_is_from_and_why_it_is_not_a_test() -> None:
    keys = [(point.kernel, point.shape, point.card) for point in POINTS]
    assert len(set(keys)) == len(keys)
    assert all(point.source and point.measured_us > 0 for point in POINTS)
    assert {point.use for point in POINTS} == {TEST, FITTED, LEFT_OUT}
    assert {point.method for point in POINTS} == {DO_BENCH, BACK_TO_BACK}
    assert {point.bound for point in POINTS} == {"memory", "compute", "latency"}
    assert all(point.note for point in POINTS if point.use == LEFT_OUT)
    assert sum(point.use == TEST for point in POINTS) >= 60
    assert sum(point.use == FITTED for point in POINTS) <= 4
    tested = [point for point in POINTS if point.use == TEST]
    assert sum(point.bound != "memory" for point in tested) >= 25
    assert sum(cards.find(point.card).arch in (89, 120) for point in tested) >= 5


def test_launches_are_those_of_the_shapes() -> None:
    pytest.importorskip("liger_kernel")
    for point in POINTS:
        if point.use == LEFT_OUT:
            continue
        tried = alternatives(point)
        assert all(launch.bytes > 0 and launch.programs > 0 for launches in tried for launch in launches)
        if "rows" in point.sizes:
            ((launch,),) = tried
            matrix = point.size("rows") * point.size("columns") * {"fp32": 4, "bf16": 2}[point.sizes["dtype"]]
            assert launch.programs == point.size("rows")
            assert 2 * matrix <= launch.bytes <= 3.1 * matrix


def test_the_masked_product_is_right_where_nothing_fills_its_tiles(device: str) -> None:
    a, b = torch.randn(37, 29, device=device), torch.randn(29, 21, device=device)
    c = torch.empty(37, 21, device=device)
    masked_matmul[(6,)](c, a, b, 37, 21, 29, BLOCK_M=16, BLOCK_N=16, BLOCK_K=16, GROUP=2)
    torch.testing.assert_close(c, (a.double() @ b.double()).float(), rtol=1e-2, atol=1e-2)


@pytest.mark.fast
def test_the_committed_file_has_every_point_once(committed: list[Time]) -> None:
    expected = [(p.kernel, p.shape, p.card, p.use, p.measured_us) for p in POINTS if p.use != LEFT_OUT]
    assert [(t.kernel, t.shape, t.card, t.use, t.measured_us) for t in committed] == expected
    for time in committed:
        assert time.ratio == pytest.approx((time.modelled_us + time.launch_us) / time.measured_us, rel=1e-3)
        assert time.modelled_low_us <= time.modelled_us <= time.modelled_high_us


@pytest.mark.fast
def test_statistics_are_those_of_numpy_and_scipy(committed: list[Time]) -> None:
    from scipy.stats import spearmanr  # a second and a half in each process, were it at the top

    for group in (committed, times.bounded_by_memory(committed), times.bounded_by_work(committed)):
        found = times.judge(group)
        tested = [time for time in group if time.use == TEST]
        ratios = np.array([time.ratio for time in tested])
        floors = np.array([time.floor_us for time in tested])
        measured = np.array([time.measured_us for time in tested])
        assert found.points == len(tested)
        assert found.error == pytest.approx(np.abs(np.log(ratios)).mean(), rel=1e-3)
        assert found.correlation == pytest.approx(spearmanr(measured / floors, ratios * measured / floors)[0], abs=0.01)
    assert len(times.bounded_by_memory(committed)) + len(times.bounded_by_work(committed)) == len(committed)


@pytest.mark.fast
def test_the_simulation_is_nearer_to_the_truth_than_overlap_alone(committed: list[Time]) -> None:
    work = times.bounded_by_work(committed)
    assert times.judge(work).error < 0.6 * times.judge(work, simulated=False).error
    assert times.judge(committed).error < times.judge(committed, simulated=False).error
    for group, most in ((committed, 0.15), (work, 0.18)):
        assert times.judge(group).error <= most
        assert times.judge(group).correlation >= 0.9
    assert f"{times.judge(committed).error:.1%}" in times.summary(committed)
    assert len(farthest(committed).splitlines()) == 16


def test_a_sample_is_modelled_again(committed: list[Time], tmp_path: Path) -> None:
    """The same to the last digit with the compiler that made the file, and near with the others that are supported."""
    pytest.importorskip("liger_kernel")
    near = 1e-4 if triton.__version__.startswith("3.7.") else 0.05
    softmax, attention = "rows=2048 columns=1024 dtype=bf16", "images=384 heads=1 tokens=197"
    points = [p for p in POINTS if p.shape == softmax or p.shape.startswith(attention)]
    assert len(points) == 3
    before = {(time.kernel, time.shape): time for time in committed}
    for time in times.model(points, processes=1, cache=tmp_path):
        known = before[time.kernel, time.shape]
        assert time.modelled_us == pytest.approx(known.modelled_us, rel=near), time.shape
        assert time.bound_by == known.bound_by
