"""A run on a real SLURM that the test starts, and that every case ends as one row of, whatever happens to its job."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Done
from vitbench.cluster import folder as folders
from vitbench.cluster.folder import Run, Shard

from .slurm import Slurm, missing, running, wait_until

Command = Callable[..., Done]

GRID = (
    "--model", "resnet18", "--resolution", "32,64", "--batch", "1,2,3,4,5,6,7,8,9,10", "--layout", "nchw,nhwc",
    "--impl", "eager", "--device", "cpu", "--min-time", "0.01", "--max-time", "0.02",
)  # fmt: skip


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    pytest.importorskip("submitit")
    if why := missing():
        pytest.skip(why)
    with running(tmp_path_factory.mktemp("slurm"), cpus=4) as one:
        monkeypatch.setenv("SLURM_CONF", one.environment["SLURM_CONF"])
        yield one


def busy(run: Run) -> Shard | None:
    """A shard that has a row and not its last."""
    return next((s for s in run.shards if s.state().state == "running" and 0 < s.done() < len(s.case_ids()) - 1), None)


@pytest.mark.slow_fault
@pytest.mark.fault(
    "jobs cancelled and preempted", "scancel, requeue, SIGUSR2 and a restarted controller, on a real SLURM",
    "every row, once, after the same command again",
)  # fmt: skip
def test_four_shards_survive_requeue_cancel_notice_and_a_new_controller(
    slurm: Slurm, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    submit = [
        "bench", *GRID, "--executor", "slurm", "--slurm-partition", "test", "--slurm-gpus-per-task", "1",
        "--shards", "4", "--slurm", "cpus_per_task=1", "--out", str(out),
    ]  # fmt: skip
    done = command(*submit)
    assert done.returncode == 0, done.stderr
    assert "submitted 4 of 4 shards as jobs" in done.stdout
    run = folders.open_run(out)
    jobs = run.job_of()

    def caught() -> Shard:
        found: list[Shard] = []
        wait_until("a shard is half-way", lambda: found.append(one) if (one := busy(run)) else found)
        return found[0]

    def rows() -> int:
        return sum(shard.done() for shard in run.shards)

    requeued = caught()
    slurm.ask("scontrol", "requeue", jobs[requeued.number])
    wait_until("it waits again", lambda: slurm.states().get(jobs[requeued.number]) != "RUNNING")

    caught()
    slurm.stop_controller()
    without = rows()
    wait_until("shards go on without a controller", lambda: rows() > without)
    slurm.start_controller()

    cancelled = caught()
    slurm.ask("scancel", jobs[cancelled.number])
    wait_until("it is over", lambda: jobs[cancelled.number] not in slurm.states())
    assert cancelled.done() < len(cancelled.case_ids()), "it was cancelled half-way"

    noticed = caught()
    slurm.ask("scancel", "--signal=USR2", jobs[noticed.number])  # what comes before a time limit and a preemption
    log = next(run.jobs.glob(f"{jobs[noticed.number]}_*.out"))
    wait_until("it has put itself back", lambda: f"requeued job {jobs[noticed.number]}" in log.read_text())

    wait_until("all other shards are done", lambda: not slurm.states())
    status = command("status", str(out))
    assert status.returncode == 1, status.stdout
    assert f"shard {cancelled.number} stopped: SIGTERM" in status.stdout
    partial = command("merge", str(out))
    assert partial.returncode == 1
    assert f"{40 - rows()} of 40 cases have no row yet" in partial.stdout

    again = command(*submit, "--follow")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "submitted 1 of 4 shards" in again.stdout

    assert command("status", str(out)).returncode == 0
    held = Counter(row.case for shard in run.shards for row in shard.rows())
    assert (len(held), set(held.values())) == (40, {1}), "none lost, none double"
    merged = command("merge", str(out))
    assert (merged.returncode, "40 rows" in merged.stdout) == (0, True), merged.stdout
    with (out / "merged.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len({row["case"] for row in table}) == 40
    assert {row["status"] for row in table} == {"ok"}, "what was ended from outside is no crash of a case"


def test_what_slurm_refuses_is_one_line(slurm: Slurm, command: Command, tmp_path: Path) -> None:
    arguments = ["bench", *GRID, "--executor", "slurm", "--slurm-partition", "gpus", "--out", str(tmp_path / "run")]
    done = command(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "invalid partition" in line
