"""The gate catches what was planted, says what moved, and exits 0, 1 or 2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vitbench.audit import baseline
from vitbench.audit.records import Row, Stalls, read_csv, write_csv
from vitbench.audit.run import audit
from vitbench.errors import InputError

KERNELS = str(Path(__file__).with_name("planted_kernels.py"))
ARCHS = (80, 90, 100)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Row]:
    items = audit([KERNELS], archs=ARCHS, processes=1, cache=tmp_path_factory.mktemp("machine_code"))
    return {(item.row.case, item.row.arch): item.row for item in items}


def _change(rows: dict[tuple[str, str], Row], case: str, arch: str) -> baseline.Change:
    """The verdict when the plain kernel is the baseline and the planted one comes in its place."""
    result = baseline.compare([rows["plain", arch]], [replace(rows[case, arch], case="plain")])
    assert result.exit_code == (result.changes[0].verdict == "slower")
    return result.changes[0]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("exp2", "modelled time +"),
        ("spill", "spill bytes 0 -> "),
        ("narrow", "narrowest hot load 16 -> 2"),
        ("no matrix", "matrix instruction "),
    ],
)
def test_planted_slow_down_is_caught(rows: dict[tuple[str, str], Row], case: str, reason: str, arch: str) -> None:
    change = _change(rows, case, arch)
    assert change.verdict == "slower"
    assert any(reason in text for text in change.reasons), change.reasons


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_one_more_exp2_per_element_is_one_more(rows: dict[tuple[str, str], Row], arch: str) -> None:
    extra = rows["exp2", arch].sfu_per_element - rows["plain", arch].sfu_per_element
    assert extra == pytest.approx(1.0, abs=1e-3)


def test_taking_the_plant_out_again_is_faster(rows: dict[tuple[str, str], Row]) -> None:
    before = replace(rows["exp2", "sm_90"], case="plain")
    result = baseline.compare([before], [rows["plain", "sm_90"]])
    assert (result.verdict, result.exit_code) == ("faster", 0)
    assert "modelled time -" in baseline.moved_table(result)


def test_unchanged_kernels_are_the_same_after_a_round_trip_through_the_file(
    rows: dict[tuple[str, str], Row], tmp_path: Path
) -> None:
    files = baseline.accept(list(rows.values()), tmp_path)
    version = rows["plain", "sm_90"].triton
    assert [path.name for path in files] == sorted(f"audit-sm_{a}-triton{version}.csv" for a in ARCHS)
    result = baseline.compare(baseline.load(tmp_path, list(rows.values())), list(rows.values()))
    assert (result.verdict, result.exit_code, result.missing, result.added) == ("same", 0, [], [])
    assert all(not change.reasons for change in result.changes)


@pytest.fixture
def row(rows: dict[tuple[str, str], Row]) -> Row:
    return rows["plain", "sm_90"]


def test_a_baseline_from_before_the_simulation_is_held_against_overlapped_times(row: Row) -> None:
    older = replace(row, modelled_us=row.overlapped_us, modelled_low_us=None, modelled_high_us=None, launch_us=None)
    assert row.modelled_us != row.overlapped_us
    assert baseline.compare([older], [row]).verdict == "same"
    slower = replace(row, overlapped_us=1.03 * row.overlapped_us)
    (change,) = baseline.compare([older], [slower]).changes
    assert (change.verdict, change.before_us, change.after_us) == ("slower", row.overlapped_us, slower.overlapped_us)
    assert "overlapped time +3.0%" in change.reasons[0]


def test_two_percent_is_the_limit(row: Row) -> None:
    within = replace(row, modelled_us=row.modelled_us * 1.019)
    beyond = replace(row, modelled_us=row.modelled_us * 1.021)
    assert baseline.compare([row], [within]).exit_code == 0
    assert baseline.compare([row], [beyond]).exit_code == 1


def test_lower_occupancy_is_slower_and_higher_is_told_as_better(row: Row) -> None:
    lower = replace(row, occupancy=row.occupancy / 2)
    assert baseline.compare([row], [lower]).changes[0].verdict == "slower"
    higher = baseline.compare([lower], [row])
    assert higher.exit_code == 0
    assert "(better)" in baseline.moved_table(higher)


def test_failed_launch_is_a_regression(row: Row) -> None:
    failed = replace(row, status="error", reason="CompilationError: no")
    result = baseline.compare([row], [failed])
    assert result.exit_code == 1
    assert "CompilationError" in baseline.moved_table(result)


def test_missing_launch_is_not_comparable_and_a_new_one_passes(row: Row) -> None:
    other = replace(row, case="other")
    assert baseline.compare([row, other], [row]).exit_code == 2
    assert baseline.compare([row], [row, other]).exit_code == 0
    assert baseline.compare([row], [row, other]).added == [other.key]


def test_time_of_a_data_dependent_loop_is_unsure(row: Row) -> None:
    before = replace(row, reason="branches at 0x10 depend on data; loops there are counted once", exact=False)
    result = baseline.compare([before], [replace(before, modelled_us=2 * row.modelled_us)])
    assert (result.verdict, result.exit_code) == ("unsure", 0)
    spilled = replace(before, modelled_us=2 * row.modelled_us, spill_bytes=row.spill_bytes + 8)
    assert baseline.compare([before], [spilled]).exit_code == 1


def test_other_triton_version_refuses(row: Row) -> None:
    with pytest.raises(InputError, match=r"triton 3\.0\.0 and"):
        baseline.compare([replace(row, triton="3.0.0")], [row])


def test_filtered_run_is_compared_with_its_part_of_the_baseline(row: Row) -> None:
    other = replace(row, case="other")
    result = baseline.compare([row, other], [row], lambda r: r.case == row.case)
    assert (result.exit_code, result.missing) == (0, [])


def test_accepting_a_part_keeps_the_rest(row: Row, tmp_path: Path) -> None:
    other, gone = replace(row, case="other"), replace(row, case="gone")
    baseline.accept([row, other, gone], tmp_path)
    (path,) = baseline.accept([replace(other, registers=7)], tmp_path, f"{row.kernel}/other/*,{row.kernel}/gone/*")
    assert [(found.case, found.registers) for found in read_csv(path)] == [("other", 7), (row.case, row.registers)]
    baseline.accept([other], tmp_path)
    assert [found.case for found in read_csv(path)] == ["other"]


def test_markdown_tells_what_moved(row: Row) -> None:
    result = baseline.compare([row, replace(row, case="other")], [replace(row, spill_bytes=8)])
    text = baseline.moved_markdown(result)
    assert text.startswith("**vitbench audit: slower: 1 launches compared: 1 slower, 1 missing**")
    assert f"| slower | `{row.key}` |" in text
    assert "spill bytes 0 -> 8 |" in text
    assert "- missing: `" in text
    assert baseline.moved_markdown(baseline.compare([row], [row])).count("|") == 0


def test_failed_launch_cannot_become_the_baseline(row: Row, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no machine code to accept"):
        baseline.accept([replace(row, status="error", reason="no")], tmp_path)


def test_bad_baseline_files_are_named(row: Row, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no audit file"):
        baseline.load(tmp_path, [row])
    path = tmp_path / "old.csv"
    path.write_text("kernel,case\na,b\n")
    with pytest.raises(InputError, match="lacks the columns"):
        baseline.load(path, [row])
    write_csv([row], path)
    path.write_text(path.read_text().replace(str(row.registers), "many", 1))
    with pytest.raises(InputError, match="expected int"):
        read_csv(path)


def test_csv_keeps_every_field(row: Row, tmp_path: Path) -> None:
    path = tmp_path / "audit.csv"
    odd = replace(row, narrowest_hot_load_bytes=None, occupancy=1 / 3, matrix_instruction="")
    write_csv([odd], path)
    assert path.read_text().splitlines()[0].startswith("kernel,case,pass,arch,dtype,triton,num_warps,num_stages,")
    (back,) = read_csv(path)
    stalls = Stalls(**{k: float(f"{v:.5g}") for k, v in vars(odd.stalls).items()})
    rounded = {k: float(f"{v:.5g}") for k, v in vars(odd).items() if isinstance(v, float)}
    assert back == replace(odd, **rounded, stalls=stalls)
