"""Bytes between the L2 cache and the multiprocessors: masks, reuse and overlap are those of the kernels' source."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.audit import registry
from vitbench.audit.job import job_of
from vitbench.audit.model.chips import chip_of
from vitbench.audit.run import Audited, audit
from vitbench.audit.traffic import CAPACITIES, Traffic
from vitbench.audit.workers.process import Worker

KERNELS = str(Path(__file__).with_name("followed_kernels.py"))
KIB = 1024


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine_code")


@pytest.fixture(scope="module")
def items(cache: Path) -> dict[str, Audited]:
    return {item.launch.case: item for item in audit([KERNELS], archs=[90], processes=1, cache=cache)}


def followed(case: str, *arguments: str) -> Traffic:
    worker = Worker("vitbench.audit.workers.follow", arguments, interprets=True)
    (launch,) = registry.launches([KERNELS], 90, f"followed/{case}/*")
    found = worker.ask(job_of(launch, 90))
    worker.close()
    assert isinstance(found, Traffic), found
    return found


def test_bytes_of_a_copy_are_those_of_its_tensors(items: dict[str, Audited]) -> None:
    row = items["whole"].row
    assert (row.loaded_bytes, row.stored_bytes) == (5 * 4 * KIB, 5 * 4 * KIB)
    assert row.bytes_ratio == 1.0


def test_masked_lanes_move_nothing_but_their_sector(items: dict[str, Audited]) -> None:
    """100 floats end in the middle of a sector of 32 bytes."""
    row = items["masked"].row
    assert (row.loaded_bytes, row.stored_bytes) == (4 * 4 * KIB + 416, 4 * 4 * KIB + 416)


def test_what_the_l1_cache_holds_is_loaded_once(items: dict[str, Audited]) -> None:
    assert items["small-again"].row.loaded_bytes == 3 * 16 * KIB
    assert items["large-again"].row.loaded_bytes == 9 * 4 * KIB * KIB


def test_misses_depend_on_the_share_of_the_cache() -> None:
    found = followed("small-again")
    assert CAPACITIES[:3] == (4 * KIB, 8 * KIB, 16 * KIB)
    again, once = 3 * 9 * 16 * KIB, 3 * 16 * KIB
    assert found.missed[:3] == (again, again, once)
    assert found.asked == found.asked_wide == again
    assert found.loaded(bypasses=True, l1_bytes=1 << 20) == again
    assert found.loaded(bypasses=False, l1_bytes=1 << 20) == once
    assert found.loaded(bypasses=False, l1_bytes=100) == again


@pytest.mark.parametrize(("case", "rows"), [("apart", 8 * 16), ("overlapping", 7 * 14 + 16)])
def test_overlap_of_windows_is_asked_twice_and_missed_once(case: str, rows: int) -> None:
    found = followed(case)
    assert found.asked == found.asked_wide == 8 * 16 * 32
    assert found.missed[-1] == rows * 32
    assert found.missed_narrow[-1] == 0


def test_memory_sees_what_programs_share_once() -> None:
    """64 programs read 4 KiB each and the same 4 KiB; with an L2 cache smaller than a program, again each time."""
    found = followed("table", str(1 << 20))
    assert found.programs == 64
    assert found.missed[-1] == 64 * 8 * KIB
    assert found.memory == 64 * 4 * KIB + 4 * KIB + found.stored
    assert followed("table", str(2 * KIB)).memory == 64 * 8 * KIB + found.stored
    assert followed("table").memory is None


def test_what_all_programs_share_comes_once_a_multiprocessor() -> None:
    """256 programs read 4 KiB each and the same 4 KiB; 132 of them are the first of a multiprocessor."""
    found = followed("shared")
    assert found.common == (256 * 4 * KIB, 0)
    assert found.span == (8 * KIB, 0)
    assert found.held(bypasses=False, l1_bytes=8 * KIB) == 256 * 4 * KIB
    assert found.held(bypasses=False, l1_bytes=8 * KIB - 1) == found.held(bypasses=True, l1_bytes=1 << 20) == 0


def test_shared_bytes_are_charged_so(items: dict[str, Audited]) -> None:
    assert items["shared"].row.loaded_bytes == 256 * 4 * KIB + 132 * 4 * KIB
    # Fewer programs than multiprocessors: each is the first of its own.
    assert items["table"].row.loaded_bytes == 64 * 8 * KIB


def test_atomics_on_one_element_follow_one_another(items: dict[str, Audited]) -> None:
    assert followed("meeting").meeting == 50_000
    assert followed("apart-adding").meeting == 1
    assert followed("shared").meeting == 0
    meeting, apart = items["meeting"].row, items["apart-adding"].row
    assert meeting.modelled_us == pytest.approx(50_000 / (chip_of(90).clock_ghz * 1e3))
    assert apart.modelled_us < 0.8 * meeting.modelled_us


def test_what_the_interpreter_cannot_run_is_counted_by_width(items: dict[str, Audited]) -> None:
    row = items["assembly"].row
    assert row.status == "ok", row.reason
    assert (row.loaded_bytes, row.stored_bytes) == (4 * 4 * KIB, 4 * 4 * KIB)


def test_functions_of_a_library_and_numbers_with_methods_are_followed() -> None:
    found = followed("library")
    assert (found.asked, found.stored) == (4 * 4 * KIB, 4 * 4 * KIB)


def test_traffic_is_kept_between_runs(items: dict[str, Audited], cache: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    # All launches but the one that cannot be followed.
    assert len([path for path in files if path.name.endswith(".traffic.gz")]) == len(items) - 1
    again = audit([KERNELS], "followed/whole/*", [90], 1, cache)
    assert again[0].row == items["whole"].row
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
