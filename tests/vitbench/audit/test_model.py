"""Occupancy, floors and modelled times against numbers worked out by hand."""

from __future__ import annotations

from collections import defaultdict

import pytest
from vitkernels import Launch

from vitbench.audit.job import Compiled
from vitbench.audit.model import time
from vitbench.audit.model.chips import CHIPS, Chip, card_named, chip_named, chip_of, occupancy
from vitbench.audit.model.profile import Profile, profile
from vitbench.audit.model.simulate import Moved, Times
from vitbench.audit.records import Row
from vitbench.audit.run import Audited
from vitbench.audit.sass import listing
from vitbench.audit.sass.execute import Executions
from vitbench.audit.sass.graph import build_graph
from vitbench.audit.show import advice, show, table
from vitbench.errors import InputError

pytestmark = pytest.mark.fast

H200 = CHIPS[90]
TEXT = '\t.section\t.text.k,"ax"\nk:\n        /*0000*/                   EXIT ;\n'

_TAIL = TEXT[TEXT.index("        /*") :].replace("0000", "0010")
NARROW = TEXT.replace("EXIT", "LDG.E.U16 R4, desc[UR4][R2.64]") + _TAIL


def _launch(**changes: object) -> Launch:
    given: dict[str, object] = {
        "kernel": None, "op": "op", "case": "case", "pass_name": "fwd", "dtype": "bf16", "args": {}, "grid": (1320,),
        "elements": 1_000_000, "bytes": 4_300_000,
    }  # fmt: skip
    return Launch(**{**given, **changes})  # type: ignore[arg-type]


def _compiled(**changes: object) -> Compiled:
    given: dict[str, object] = {
        "sass": TEXT, "registers": 64, "stack_bytes": 0, "shared_bytes": 0, "tensor_memory_columns": 0,
        "matrix_instruction": "", "num_warps": 4, "parameters": (), "triton": "3.7.1",
    }  # fmt: skip
    return Compiled(**{**given, **changes})  # type: ignore[arg-type]


SIMULATED = Times(2.0, 1.5, 2.5, {"MIO throttle": 0.25, "branch or start": 0.75})


def _row(launch: Launch, counted: Profile, chip: Chip = H200, **compiled: object) -> Row:
    return time.model(launch, _compiled(**compiled), counted, chip, Moved(0, 0, 0), SIMULATED)


def _profile(issued: float = 0.0, **cycles: float) -> Profile:
    graph = build_graph(listing.parse(TEXT))
    tally: defaultdict[str, float] = defaultdict(float, cycles)
    return Profile(graph, [1.0], issued=issued, cycles=tally)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs", "limit"),
    [
        (32, 0, 4, 16, "warps"),
        (32, 0, 1, 32, "programs"),
        (128, 0, 4, 4, "registers"),
        (255, 0, 8, 1, "registers"),
        (32, 100 * 1024, 4, 2, "shared"),
        (32, 227 * 1024, 4, 1, "shared"),
        (32, 256 * 1024, 4, 0, "shared"),
    ],
)
def test_occupancy(registers: int, shared: int, warps: int, programs: int, limit: str) -> None:
    found = occupancy(H200, registers, shared, warps)
    assert (found.programs, found.limit) == (programs, limit)
    assert found.share == programs * warps / 64


def test_tensor_memory_limits_occupancy() -> None:
    assert occupancy(CHIPS[100], 32, 0, 4, tensor_columns=256).programs == 2


def test_bytes_bind_a_copy() -> None:
    row = _row(_launch(), _profile(issued=1000))
    assert row.bytes_us == pytest.approx(1.0)
    assert row.floor_us == pytest.approx(1.0)
    assert (row.bound_by, row.status) == ("bytes", "ok")
    assert row.overlapped_us == pytest.approx(1.0, abs=1e-3)
    assert row.floor_share == 0.5  # of the simulated time
    assert (row.modelled_us, row.modelled_low_us, row.modelled_high_us) == (2.0, 1.5, 2.5)
    assert (row.stalls.stall_mio_throttle, row.stalls.stall_branch_or_start) == (0.25, 0.75)
    assert (row.card, row.launch_us) == ("H200", H200.launch_us)


def test_issue_time_is_one_instruction_per_scheduler_and_clock() -> None:
    issued = 4 * 132 * 1755 * 3.0  # three microseconds of the whole card
    row = _row(_launch(bytes=0), _profile(issued=issued))
    assert row.issue_us == pytest.approx(3.0)
    assert row.issue_slots_per_element == pytest.approx(issued * 32 / 1e6)


def test_busiest_multiprocessor_decides() -> None:
    counted = _profile(issued=4 * 132 * 1755.0)
    even = _row(_launch(grid=(132,)), counted)
    uneven = _row(_launch(grid=(133,)), counted)
    assert uneven.issue_us / even.issue_us == pytest.approx(2 * 132 / 133)


def test_floor_is_the_slowest_kind_of_unavoidable_work() -> None:
    exp2 = 132 * 16 * 1755 * 5
    assert time.floor_us(_launch(bytes=0, special=exp2), H200) == pytest.approx(5.0)
    assert time.floor_us(_launch(bytes=0, matrix_flops=790_000_000 * 2), H200) == pytest.approx(2.0)
    assert time.floor_us(_launch(bytes=0, fma=132 * 128 * 1755), H200) == pytest.approx(1.0)
    # By hand: CoAtNet-0 S3 at 224 pixels, batch 64: 38.5 MB in 9.0 us and 8.0 us of exp2.
    assert time.floor_us(_launch(bytes=38_535_168), H200) == pytest.approx(9.0, abs=0.05)
    assert time.floor_us(_launch(bytes=0, special=64 * 12 * 196 * 196), H200) == pytest.approx(8.0, abs=0.05)


def test_a_row_on_another_card_of_the_architecture() -> None:
    """An H100 differs from an H200 in memory: a copy takes 4.3 / 3.0 as long, arithmetic as long as before."""
    h100 = card_named("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    assert card_named("NVIDIA H200") is H200
    assert card_named("NVIDIA T4") is None
    launch = _launch()
    counted = _profile(issued=4 * 132 * 1755 * 0.5)
    moved = _row(launch, counted, h100)
    assert moved.bytes_us == pytest.approx(4.3 / 3.0)
    assert moved.issue_us == _row(launch, counted).issue_us == pytest.approx(0.5)
    assert moved.floor_us == pytest.approx(4.3 / 3.0)
    assert moved.overlapped_us == pytest.approx((0.5**4 + (4.3 / 3.0) ** 4) ** 0.25)
    assert moved.card == "H100 SXM"
    pcie = chip_named("H100 PCIe")  # 1,320 programs on 114 multiprocessors of the same clock: 12 each, not 10
    assert _row(launch, counted, pcie).issue_us == pytest.approx(0.5 * 12 / 10)


def test_kernel_that_does_not_fit_is_an_error_row() -> None:
    compiled = _compiled(shared_bytes=240 * 1024)
    row = time.model(_launch(), compiled, _profile(issued=1), H200, Moved(0, 0, 0), None)
    assert (row.status, row.occupancy) == ("error", 0.0)
    assert "does not fit" in row.reason


def test_unknown_architecture_is_bad_input() -> None:
    with pytest.raises(InputError, match=r"sm_75.*sm_80, sm_86, sm_89, sm_90, sm_100"):
        chip_of(75)


def test_text_reports_name_the_launch_and_what_to_try() -> None:
    launch = _launch(matrix_flops=10, grid=(2,))
    compiled = _compiled(stack_bytes=16, sass=NARROW)
    ran = Executions([8.0], {}, frozenset(), False)
    counted = profile(build_graph(listing.parse(NARROW)), ran, launch, compiled, 90)
    assert (counted.issued, counted.narrowest_hot_load_bytes) == (16, 2)
    item = Audited(launch, 90, time.model(launch, compiled, counted, H200, Moved(0, 0, 0), SIMULATED), compiled, ran)
    hints = " ".join(advice(item))
    assert "16 bytes of stack" in hints
    assert "no matrix instruction" in hints
    assert "2-byte global loads" in hints
    assert "leave multiprocessors idle" in hints
    assert "EXIT" in show(item)
    assert table([item.row])[0].cells == [launch.id]
    failed = Audited(launch, 90, time.failure(launch, 90, "", "CompilationError: no"))
    assert "CompilationError: no" in table([failed.row])[-1].cells[0]
    assert "CompilationError: no" in show(failed)
