"""What a default sweep measures, in which order, and how a budget ends one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vitbench.bench import command as commands
from vitbench.bench import telling
from vitbench.bench.options import BenchOptions, SweepOptions
from vitbench.bench.plan import Case, group
from vitbench.catalog import catalog
from vitbench.errors import InputError
from vitbench.results import journal

GPU = SweepOptions()
MAKE_BENCH = {"dtype": "fp32,bf16", "mode": "infer,train"}


def planned(gpu: str = "H200", **given: object) -> list[Case]:
    return commands.plan(BenchOptions(gpu=gpu, dry_run=True, **given))  # type: ignore[arg-type]


def native(case: Case) -> bool:
    return case.resolution == catalog()[case.model].resolution


@pytest.mark.parametrize("model", ["cmt_s", "vit_base_patch16_224,resnet50,cmt_s"])
def test_a_default_sweep_ends_within_minutes_by_plan(model: str) -> None:
    assert telling.total(planned(model=model, **MAKE_BENCH), GPU) < 1.05 * 600
    here = commands.plan(BenchOptions(model=model, device="cpu", dtype="fp32,bf16", mode="infer,train"))
    assert telling.total(here, SweepOptions(max_time=2.0)) < 1.05 * 180


def test_compile_is_planned_where_it_tells_most_and_eager_and_fused_everywhere() -> None:
    cases = planned(model="cmt_s", **MAKE_BENCH)
    compiled = [case for case in cases if case.impl == "compile"]
    assert {(case.dtype, case.batch, native(case)) for case in compiled} == {("bf16", 1, True), ("bf16", 64, True)}
    rest = {impl: [case.comparison for case in cases if case.impl == impl] for impl in ("eager", "fused")}
    assert rest["eager"] == rest["fused"]
    assert {case.comparison for case in compiled} <= set(rest["eager"])


def test_what_is_asked_for_is_planned_in_full_and_so_is_all() -> None:
    asked = planned(model="cmt_s", impl="eager,compile", batch="1,2,3", **MAKE_BENCH)
    assert len(asked) == 2 * 3 * 3 * 4
    assert len(planned(model="cmt_s", all=True, **MAKE_BENCH)) == 3 * 15 * 4


def test_every_model_that_is_named_is_measured() -> None:
    assert {case.model for case in planned(model="vit_*,cmt_*")} == {
        name for name in catalog() if name.startswith(("vit_", "cmt_"))
    }


def test_the_most_telling_come_first_and_groups_stay_together() -> None:
    cases = planned(model="cmt_s,resnet50", all=True, **MAKE_BENCH)
    first = telling.ordered(cases)
    assert sorted(case.id for case in first) == sorted(case.id for case in cases)
    assert [len(members) for members in group(first)] == [3] * (len(cases) // 3)
    heads = [members[0] for members in group(first)][:4]
    assert all(native(one) and (one.mode, one.dtype) == ("infer", "bf16") and one.batch in (1, 64) for one in heads)
    assert {one.model for one in heads} == {"cmt_s", "resnet50"}


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("10m5", 605)])
def test_durations(text: str, seconds: float) -> None:
    assert telling.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["0", "ten", "", "-3s", "m"])
def test_no_durations(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        telling.parse_duration(text)


def test_a_budget_ends_a_sweep_and_the_same_command_goes_on(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out = tmp_path / "a.csv"
    options = (
        "bench", "--model", "resnet18", "--resolution", "32", "--batch", "2,1", "--device", "cpu",
        "--min-time", "0.05", "--max-time", "0.1", "--out", str(out), "--budget",
    )  # fmt: skip
    cut = command(*options, "0.01s")
    assert cut.returncode == 0, cut.stderr
    assert "2 cases to measure, about 0m" in cut.stdout
    assert "the time was up with 2 of 2 cases left; the same command goes on from there" in cut.stdout
    assert not out.exists()
    done = command(*options, "10m")
    assert done.returncode == 0, done.stderr
    assert "time was up" not in done.stdout
    assert [row.batch for row in journal.read(out)] == [1, 2], "one image tells most"
    again = command(*options, "10m")
    assert "to measure" not in again.stdout
    table = [line.split()[6] for line in again.stdout.splitlines() if line.startswith("resnet18 ")]
    assert table == ["2", "1"], "in the order asked for"
