"""A run's rows become one CSV, one row a case, and are kept apart where they cannot be compared."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Done
from vitbench.cluster import folder as folders
from vitbench.cluster.folder import State
from vitbench.cluster.merge import merge
from vitbench.errors import InputError
from vitbench.results import journal

from .problems import cases, measured, run_of

Command = Callable[..., Done]


def test_rows_come_in_the_order_of_the_plan_with_their_samples(tmp_path: Path, command: Command) -> None:
    planned = cases(12)
    run = run_of(tmp_path / "run", planned, 4)
    for number, shard in enumerate(reversed(run.shards)):  # each on a GPU of its own
        measured(shard, [case for _, case in shard.cases()], number + 1.0, device_uuid=f"GPU-{number}")
    done = command("merge", str(run.folder))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"wrote {run.folder}/merged.csv: 12 rows, NVIDIA H200" in done.stdout
    rows = journal.read(run.folder / "merged.csv")
    assert [row.case for row in rows] == [case.id for case in planned]
    assert {row.environment.device_uuid for row in rows} == {f"GPU-{n}" for n in range(4)}
    samples = journal.read_samples(run.folder / "merged.csv")
    assert samples == {row.case: [row.speed.img_per_s] for row in rows}


def test_gpu_types_get_a_csv_each_unless_told_otherwise(tmp_path: Path, command: Command) -> None:
    planned = cases(8)
    run = run_of(tmp_path / "run", planned, 2)
    for shard, device in zip(run.shards, ("NVIDIA H200", "NVIDIA A100-SXM4-80GB"), strict=True):
        measured(shard, [case for _, case in shard.cases()], device_name=device)
    done = command("merge", str(run.folder), "--out", str(tmp_path / "all.csv"))
    assert done.returncode == 0
    assert "rows differ in device_name NVIDIA H200 or NVIDIA A100-SXM4-80GB" in done.stdout
    assert not (tmp_path / "all.csv").exists()
    for shard, name in zip(run.shards, ("nvidia-h200", "nvidia-a100-sxm4-80gb"), strict=True):
        rows = journal.read(tmp_path / f"all-{name}.csv")
        assert [row.case for row in rows] == [case.id for _, case in shard.cases()]
    done = command("merge", str(run.folder), "--out", str(tmp_path / "all.csv"), "--together")
    assert "rows of one CSV differ in device_name" in done.stdout
    assert [row.case for row in journal.read(tmp_path / "all.csv")] == [case.id for case in planned]


def test_one_gpu_type_under_two_drivers_is_told_apart(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", cases(4), 2)
    for shard, driver in zip(run.shards, ("600", "601"), strict=True):
        measured(shard, [case for _, case in shard.cases()], driver=driver)
    merged = merge(run, tmp_path / "all.csv")
    assert [path.name for path, _ in merged.written] == ["all-nvidia-h200-1.csv", "all-nvidia-h200-2.csv"]


def test_what_is_missing_or_cut_short_is_said(tmp_path: Path, command: Command) -> None:
    run = run_of(tmp_path / "run", cases(6), 2)
    first, second = run.shards
    done = command("merge", str(run.folder))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no row yet" in done.stderr
    path = measured(first, [case for _, case in first.cases()])
    cut = measured(second, [case for _, case in second.cases()])
    cut.write_bytes(cut.read_bytes()[:-20])
    with journal.samples_path(cut).open("a") as samples:
        samples.write('{"case": "resn')
    done = command("merge", str(run.folder))
    assert done.returncode == 1
    assert "1 of 6 cases have no row yet" in done.stdout
    assert len(journal.read(run.folder / "merged.csv")) == 5
    assert len(journal.read_samples(run.folder / "merged.csv")) == 6
    with path.open("a") as rows:
        rows.write("garbage\n")
    done = command("merge", str(run.folder))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{path} line 5 is damaged" in done.stderr


def test_a_case_measured_twice_has_its_later_row(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", cases(4), 1)
    (shard,) = run.shards
    mine = [case for _, case in shard.cases()]
    measured(shard, mine, 1.0)
    later = measured(shard, mine[:2], 2.0, device_uuid="GPU-2")
    assert shard.row_files()[-1] == later
    merged = merge(run, tmp_path / "all.csv")
    assert (merged.replaced, merged.missing) == (2, 0)
    rows = journal.read(tmp_path / "all.csv")
    assert [row.speed.img_per_s for row in rows] == [2.0, 2.0, 1.0, 1.0]
    assert list(journal.read_samples(tmp_path / "all.csv").values()) == [[2.0], [2.0], [1.0], [1.0]]


def test_a_row_of_another_shards_case_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", cases(4), 2)
    first, second = run.shards
    measured(first, [case for _, case in second.cases()])
    with pytest.raises(InputError, match="is no case of its shard"):
        merge(run, tmp_path / "all.csv")


def test_failed_cases_count(tmp_path: Path, command: Command) -> None:
    run = run_of(tmp_path / "run", cases(2), 1)
    (shard,) = run.shards
    path = measured(shard, [case for _, case in shard.cases()])
    path.write_text(path.read_text().replace(",ok,", ",crashed,", 1))
    done = command("merge", str(run.folder))
    assert (done.returncode, "1 cases failed" in done.stdout) == (1, True)


def test_status_tells_from_the_folder_alone(tmp_path: Path, command: Command) -> None:
    run = run_of(tmp_path / "run", cases(9), 3)
    done_, lost, queued = run.shards
    measured(done_, [case for _, case in done_.cases()])
    done_.say(State("done", job="7_0", node="n1", device="NVIDIA H200"))
    measured(lost, [lost.cases()[0][1]])
    lost.say(State("running", job="7_1", node="n2"))
    assert command("status", str(run.folder)).returncode == 0
    long_ago = 1_000_000_000
    os.utime(lost.folder / "state.json", (long_ago, long_ago))
    (queued.folder / "state.json").write_text('{"state": "run')  # of a disk that was full
    run.submitted(queued.number, "7_2")
    done = command("status", str(run.folder))
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:4] for line in lines[1:4]] == [
        [str(done_.number), "done", "3", "3"], [str(lost.number), "lost", "1", "3"],
        [str(queued.number), "queued", "0", "3"],
    ]  # fmt: skip
    assert "7_2" in lines[3]
    assert done.returncode == 1
    assert f"shard {lost.number} lost: no sign of life" in done.stdout
    assert "4 of 9 cases are done" in done.stdout


@pytest.mark.parametrize("damage", ["{", '{"format": 99}', '{"format": 1}', "[]", None])
def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path, command: Command, damage: str | None) -> None:
    if damage is not None:
        (tmp_path / "run.json").write_text(damage)
    for name in ("status", "merge"):
        done = command(name, str(tmp_path))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_jobs_of_others_could_run_anything_so_their_folder_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", cases(1), 1)
    assert run.jobs.stat().st_mode & 0o777 == 0o700
    run.jobs.chmod(0o777)
    with pytest.raises(InputError, match="written by others"):
        _ = run.jobs


def test_ids_are_read_back(tmp_path: Path) -> None:
    planned = cases(5)
    run = run_of(tmp_path / "run", planned, 2)
    read = {place: case for shard in folders.open_run(run.folder).shards for place, case in shard.cases()}
    assert [read[place] for place in range(5)] == planned
    listed = run.shards[0].folder / "cases.csv"
    assert next(csv.reader(listed.open())) == ["position", "case"]
    assert json.loads((run.folder / "run.json").read_text())["cases"] == 5
