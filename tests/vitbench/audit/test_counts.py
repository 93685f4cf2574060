"""What the audit counts in machine code is what the kernels' source says, on every architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.audit.model.profile import Profile
from vitbench.audit.run import Audited, audit

KERNELS = str(Path(__file__).with_name("counted_kernels.py"))
ARCHS = (80, 90, 100)
Items = dict[tuple[str, int], Audited]

# exp2 that one warp executes, averaged over the programs of the launch.
EXP2 = {
    "chain-0": 0, "chain-1": 1, "chain-2": 2, "chain-7": 7, "chain-96": 96, "chain-1003": 1003, "chain-7-warps8": 7,
    "triangle-0": 0, "triangle-1": 0, "triangle-9": 36, "triangle-30": 435,
    "third-10": 4, "third-31": 11,
    "program-3x4": sum(5 * x + y for x in range(3) for y in range(4)) / 12,
    "rows-100-16": 100 / 16, "rows-10-16": 10 / 16,
    "halving-1000": 10, "halving-0": 0,
    # Each of the two run-time divisions takes one reciprocal, which is a special function too.
    "divided-97-7": 2 + sum(97 // (p + 7) + 97 % 7 for p in range(11)) / 11,
    "divided-64-16": 2 + sum(64 // (p + 16) for p in range(11)) / 11,
}  # fmt: skip


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Items:
    items = audit([KERNELS], archs=ARCHS, processes=1, cache=tmp_path_factory.mktemp("machine_code"))
    return {(item.launch.case, item.arch): item for item in items}


def _profile(item: Audited) -> Profile:
    assert item.profile is not None, item.row.reason
    return item.profile


def _warps(item: Audited) -> int:
    return item.row.programs * item.row.num_warps


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", EXP2)
def test_special_functions_of_run_time_loops_are_counted_exactly(audited: Items, case: str, arch: int) -> None:
    item = audited[case, arch]
    assert _profile(item).special / _warps(item) == pytest.approx(EXP2[case], abs=1e-12)
    assert item.row.exact
    assert item.row.sfu_per_element == pytest.approx(EXP2[case] * _warps(item) * 32 / item.launch.elements)


@pytest.mark.parametrize("arch", ARCHS)
def test_sampled_grid_gives_the_mean_over_all_programs(audited: Items, arch: int) -> None:
    item = audited["program-800x3", arch]
    mean = sum(5 * x + y for x in range(800) for y in range(3)) / 2400
    assert _profile(item).special / _warps(item) == pytest.approx(mean, rel=0.01)
    assert not item.row.exact


@pytest.mark.parametrize("arch", ARCHS)
def test_loop_bound_read_from_memory_is_reported_not_guessed_silently(audited: Items, arch: int) -> None:
    row = audited["from-memory", arch].row
    assert not row.exact
    assert "depend on data" in row.reason


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(
    ("case", "width", "per_warp"),
    [("wide-1", 16, 1), ("wide-37", 16, 37), ("four-byte-37", 4, 37), ("unaligned-37", 2, 8 * 37)],
)
def test_global_loads_are_counted_by_width(audited: Items, case: str, width: int, per_warp: int, arch: int) -> None:
    item = audited[case, arch]
    assert _profile(item).widths == {width: per_warp * _warps(item)}
    assert item.row.narrowest_hot_load_bytes == width
    # The last case loads the same bytes in narrow pieces.
    assert item.row.loaded_bytes == item.launch.programs * item.launch.elements * 2


@pytest.mark.parametrize("arch", ARCHS)
def test_pipelined_loads_stay_wide_and_issue_at_most_one_trip_per_stage_more(audited: Items, arch: int) -> None:
    item = audited["wide-37-staged", arch]
    assert set(_profile(item).widths) == {16}
    assert 37 <= _profile(item).widths[16] / _warps(item) <= 37 + 3


@pytest.mark.parametrize(("arch", "instruction"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
@pytest.mark.parametrize("case", ["256x128x512-tile64-stages3", "256x128x64-tile64-stages1"])
def test_matrix_work_of_pipelined_loops_is_exactly_the_products(
    audited: Items, case: str, arch: int, instruction: str
) -> None:
    item = audited[case, arch]
    assert item.row.matrix_instruction == instruction
    assert 2 * _profile(item).matrix_multiply_adds == item.launch.matrix_flops


def test_launch_that_cannot_fit_is_an_error(audited: Items) -> None:
    row = audited["256x256x384-tile128-stages4", 90].row
    assert row.shared_bytes > 227 * 1024
    assert (row.status, row.occupancy) == ("error", 0)
    assert "too much shared" in row.reason


@pytest.mark.parametrize("arch", ARCHS)
def test_spills_show(audited: Items, arch: int) -> None:
    assert audited["tight", arch].row.spill_bytes > 0
    assert audited["chain-7", arch].row.spill_bytes == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_nested_loops_have_depths_and_trips(audited: Items, arch: int) -> None:
    item = audited["triangle-30", arch]
    depths = {loop.depth for loop in _profile(item).loops}
    assert {1, 2} <= depths
    outer = min(_profile(item).loops, key=lambda loop: loop.depth)
    assert outer.trips <= 30
    inner = [loop for loop in _profile(item).loops if loop.depth == 2]
    assert sum(loop.issue_share for loop in inner) > 0.5
    assert sum(loop.issue_share for loop in _profile(item).loops) <= 1


@pytest.mark.parametrize("arch", ARCHS)
def test_issue_slots_grow_by_the_same_amount_per_trip(audited: Items, arch: int) -> None:
    issued = {n: _profile(audited[f"wide-{n}", arch]).issued for n in (1, 37)}
    assert issued[37] > issued[1]
    row = audited["wide-37", arch].row
    assert row.issue_slots_per_element == pytest.approx(issued[37] * 32 / audited["wide-37", arch].launch.elements)
