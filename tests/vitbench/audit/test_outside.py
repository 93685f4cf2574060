"""Kernels that nobody wrote for the audit are audited as they are launched, or refused in one line."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from vitkernels import Descriptor, Launch, launches_of

from vitbench.audit import registry
from vitbench.audit.job import decided, job_of
from vitbench.audit.run import Audited, audit
from vitbench.cli import app
from vitbench.errors import InputError

FILE = Path(__file__).with_name("outside_kernels.py")


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Audited]:
    found = audit([str(FILE)], "outside,copied,doubled", [90], 1, tmp_path_factory.mktemp("machine_code"))
    return {f"{item.launch.case}/{item.launch.pass_name}": item for item in found}


@pytest.fixture(scope="module")
def launches() -> dict[str, Launch]:
    found = registry.launches([str(FILE)], 90)
    return {f"{launch.case}/{launch.pass_name}": launch for launch in found}


def test_what_decorators_decide_need_not_be_given(items: dict[str, Audited], launches: dict[str, Launch]) -> None:
    heuristics, tuned = items["heuristics/fwd"].row, items["tuned/fwd"].row
    assert (heuristics.status, tuned.status) == ("ok", "ok"), (heuristics.reason, tuned.reason)
    assert heuristics.sfu_per_element == pytest.approx(1.0)
    assert (tuned.num_warps, tuned.num_stages, tuned.narrowest_hot_load_bytes) == (2, 1, 16)
    assert decided(launches["tuned/fwd"]).args["EVEN"] is True
    given = replace(launches["tuned/fwd"], args={**launches["tuned/fwd"].args, "BLOCK": 1024}, num_warps=8)
    assert decided(given).args["EVEN"] is True
    assert (decided(given).args["BLOCK"], decided(given).num_warps) == (1024, 8)


def test_what_decorators_cannot_decide_is_asked_for(launches: dict[str, Launch]) -> None:
    three = launches["odd/tuned_over_three+BLOCK=256+w2+s3"]
    # What is recorded is decided; written by hand it would name the kernel with its decorators.
    decorated = sys.modules["vitbench_kernels_outside_kernels"].tuned_over_three
    left = {name: value for name, value in three.args.items() if name != "BLOCK"}
    undecided = replace(three, kernel=decorated, args=left)
    with pytest.raises(InputError, match="tuned over 3 configurations; give BLOCK of one in args"):
        job_of(undecided, 90)
    heuristics = launches["heuristics/fwd"]
    unknown = replace(heuristics, args={name: v for name, v in heuristics.args.items() if name != "SCALE"})
    with pytest.raises(InputError, match=r"heuristic of SCALE cannot be computed from args .*give SCALE there"):
        job_of(unknown, 90)


def test_loops_bounded_by_memory_run_as_often_as_its_values_say(items: dict[str, Audited]) -> None:
    """Segments of 100, 0, 2048 and 852 floats: the sectors of 32 bytes that they touch, and eight for the bounds."""
    known = items["ragged-known/fwd"]
    assert (known.row.status, known.row.exact, known.row.reason) == ("ok", True, "")
    assert known.row.loaded_bytes == 32 * (13 + 256 + 1 + 107 + 4)
    assert known.profile is not None
    # A segment's sum over four warps takes a few more than one addition a trip.
    trips = sum(-(-length // 128) for length in (100, 2048, 852))
    adds = known.profile.by_name["FADD"] / known.row.num_warps
    assert trips <= adds < trips + 4 * 16


def test_without_the_values_there_is_no_time(items: dict[str, Audited]) -> None:
    row = items["ragged-unknown/fwd"].row
    assert (row.status, row.modelled_us) == ("error", 0)
    assert "nobody knows how often they run" in row.reason
    assert "Launch.values" in row.reason


def test_values_need_integers(launches: dict[str, Launch], tmp_path: Path) -> None:
    from vitbench.audit.run import audit_launches

    wrong = replace(launches["ragged-known/fwd"], values={"x_ptr": [1, 2]})
    (found,) = audit_launches([(wrong, 90)], 1, tmp_path)
    assert found.row.reason.startswith("InputError: outside/ragged-known/fwd/fp32: values of 'x_ptr' need a pointer to")


def test_descriptors_move_their_tiles_clipped_to_the_tensor(items: dict[str, Audited]) -> None:
    whole, narrow = items["tiles-whole/fwd"].row, items["tiles-narrow/fwd"].row
    assert (whole.loaded_bytes, whole.stored_bytes) == (150 * 8192, 150 * 8192)
    assert whole.bytes_ratio == 1.0
    assert whole.modelled_us > whole.floor_us
    # Rows of 80 bytes begin anywhere in a sector.
    assert narrow.loaded_bytes == pytest.approx(700 * 80, rel=0.02)
    assert narrow.stored_bytes == narrow.loaded_bytes


def test_a_launcher_tells_grid_strides_alignment_and_configurations(launches: dict[str, Launch]) -> None:
    small, large = (launches[f"odd/tuned_over_three+BLOCK={b}+w{b // 128}+s3"] for b in (256, 512))
    assert (small.id.split("/")[0], small.dtype, small.grid, large.grid) == ("copied", "fp32", (12,), (6,))
    assert (small.args["n"], small.args["step"], small.args["BLOCK"]) == (2999, 1, 256)
    assert (small.unaligned, small.bytes, small.elements) == ({"x_ptr"}, 2 * 4 * 2999, 2999)
    # The third configuration is larger than the tensor, and pruned.
    assert sum(name.startswith("odd/") for name in launches) == 2


def test_what_a_launcher_launches_is_audited(items: dict[str, Audited]) -> None:
    first, second = items["descriptors/tiles"], items["descriptors/tiles-2"]
    assert first.launch.args["src"] == Descriptor("bf16", (640, 64), (64, 1), (64, 32))
    assert (first.row.status, second.row.status) == ("ok", "ok"), first.row.reason
    assert (first.row.num_warps, second.row.num_warps, second.launch.options) == (8, 4, {"maxnreg": 64})
    assert first.row.loaded_bytes == 640 * 32 * 2


def test_nothing_launched_is_said() -> None:
    with pytest.raises(ValueError, match="launched no Triton kernel"):
        launches_of(torch.neg, torch.empty(3, device="meta"), case="none")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import not_installed_anywhere\n", "No module named 'not_installed_anywhere' (line 1 of"),
        ("\ndef audit_launches(arch):\n    return 1 / 0\n", "audit_launches(90) failed: ZeroDivisionError: division"),
        ("def audit_launches(arch:\n", "SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_used_is_one_line(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    ran = CliRunner().invoke(app, ["audit", "--kernels", str(tmp_path / "mine.py"), "--arch", "sm_90"])
    assert ran.exit_code == 2 or "InputError" in repr(ran.exception)
    said = ran.output or str(ran.exception)
    assert told in said
    assert len(said.strip().splitlines()) == 1


def test_recording_leaves_kernels_as_they_were() -> None:
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    before = JITFunction.run, Autotuner.run
    with pytest.raises(TypeError):
        launches_of(importlib.import_module("vitkernels").bias_attention, torch.empty(2, device="meta"), case="bad")
    assert (JITFunction.run, Autotuner.run) == before
    assert "vitbench_kernels_outside_kernels" in sys.modules
