"""Shards on this machine: each device measures one at a time, and a shard goes on where it was."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Done
from vitbench.cluster import local, locks
from vitbench.cluster import shard as shards
from vitbench.cluster.folder import Run, Shard
from vitbench.cluster.local import Slot
from vitbench.errors import InputError
from vitbench.measure import device as devices
from vitbench.process import python_environment
from vitbench.results import journal

from .problems import cases, run_of

Command = Callable[..., Done]


def test_a_device_measures_one_shard_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the shard: a process that writes when it began, for how long it ran and on what."""
    program = (
        "import os, sys, time; start = time.monotonic(); time.sleep(0.3)\n"
        "open(sys.argv[1], 'a').write(f\"{os.environ['CUDA_VISIBLE_DEVICES']} {start} {time.monotonic()}\\n\")\n"
    )
    log = tmp_path / "log"

    def start(run: Run, shard: Shard, slot: Slot) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, str(log)]
        return subprocess.Popen(command, env={**os.environ, **slot.environment}, stdin=subprocess.PIPE)

    monkeypatch.setattr(local, "_start", start)
    run = run_of(tmp_path / "run", cases(7), 7)
    slots = [Slot(f"cuda:{n}", {"CUDA_VISIBLE_DEVICES": str(n)}) for n in range(2)]
    assert local.work(run, run.shards, slots, lambda: None)
    spans: dict[str, list[tuple[float, float]]] = {}
    for line in log.read_text().splitlines():
        device, begin, end = line.split()
        spans.setdefault(device, []).append((float(begin), float(end)))
    assert sum(map(len, spans.values())) == 7
    assert set(spans) == {"0", "1"}
    for one in spans.values():
        one.sort()
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(one))


def test_gpus_are_counted_in_those_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "check_device", lambda name: name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    visible = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in local.slots("cuda:0, cuda:3")]
    assert visible == ["0", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-b")
    visible = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in local.slots("cuda,cuda:1")]
    assert visible == ["4", "GPU-b"]
    for names in ("cuda:0,cuda:0", "cuda,cuda:0", "cpu,cpu"):
        with pytest.raises(InputError, match="twice"):
            local.slots(names)
    with pytest.raises(InputError, match="one kind"):
        local.slots("cuda:0,cpu")


def test_a_lock_is_waited_for_and_given_up(tmp_path: Path) -> None:
    path, waited = tmp_path / "lock", []
    with locks.held(path, lambda: None):
        with (
            pytest.raises(InputError, match="another process has held"),
            locks.held(path, lambda: waited.append(1), patience=0.3),
        ):
            pass
        thread = threading.Thread(target=lambda: locks.held(path, lambda: None).__enter__())
    assert waited
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def begin(run: Run, shard: Shard) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "vitbench.cluster.shard", str(run.folder), str(shard.number)]
    return subprocess.Popen(command, env=python_environment(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow_fault
@pytest.mark.fault("kill -9 of a shard", "SIGUSR2, as before a time limit, then SIGKILL", "every row, once")
def test_a_shard_goes_on_after_a_notice_and_after_sigkill(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", cases(5, ["resnet18"]), 1)
    (shard,) = run.shards
    with begin(run, shard) as process:
        until(lambda: shard.done() >= 1)
        process.send_signal(signal.SIGUSR2)
        assert process.wait(60) == 130
    state, first = shard.state(), shard.done()
    assert (state.state, state.why) == ("stopped", "SIGUSR2")
    assert 1 <= first < 5
    with begin(run, shard) as process:
        until(lambda: shard.done() > first)
        process.kill()
        process.wait(60)
    assert shard.state().state == "running", "it could not say more"
    assert shards.run(str(run.folder), 0) == 0
    rows = shard.rows()
    assert len(rows) == len({row.case for row in rows}) == 5
    assert {row.status for row in rows} == {"ok"}
    assert shard.state().state == "done"


@pytest.mark.usefixtures("served")
def test_two_processes_of_one_shard_make_no_row_twice(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", cases(3, ["resnet18"]), 1)
    (shard,) = run.shards
    with begin(run, shard) as one, begin(run, shard) as other:
        assert (one.wait(300), other.wait(300)) == (0, 0)
    assert sorted(row.case for row in shard.rows()) == sorted(case.id for _, case in shard.cases())


def test_attempts_without_a_row_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run", cases(1, ["resnet18"]), 1)
    (shard,) = run.shards

    def too_short(*_: object) -> bool:
        raise KeyboardInterrupt  # its time is up

    monkeypatch.setattr(shards, "_sweep", too_short)
    for attempt in range(3):
        assert shards.run(str(run.folder), 0) == 130
        assert shard.state().fruitless == attempt
    assert "as in 2 attempts before without a new row: give it more time" in shard.state().why


def test_a_run_in_jobs_of_this_machine(tmp_path: Path, command: Command) -> None:
    """submitit's own executor, for machines without SLURM."""
    pytest.importorskip("submitit")
    out = tmp_path / "run"
    grid = ["--model", "resnet18", "--resolution", "32", "--batch", "1,2,3", "--impl", "eager", "--device", "cpu"]
    quick = ["--min-time", "0.01", "--max-time", "0.02"]
    submit = ["bench", *grid, *quick, "--executor", "submitit-local", "--shards", "2", "--out", str(out), "--follow"]
    done = command(*submit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 cases are done" in done.stdout
    again = command(*submit)
    assert "every shard is done or has its job" in again.stdout
    other = command(*submit, "--mode", "train")
    assert (other.returncode, "is a run of 3 other cases" in other.stderr) == (2, True)
    assert command("merge", str(out)).returncode == 0
    assert [row.status for row in journal.read(out / "merged.csv")] == ["ok"] * 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--executor", "slrum"], "did you mean slurm?"),
        (["--executor", "submitit-local", "--shards", "0"], "--shards 0 should be 1 or more"),
        (["--slurm-partition", "gpu", "--device", "cpu,cpu"], "--slurm-partition is for --executor slurm"),
        (["--device", "cpu,cpu"], "names cpu twice"),
        (["--executor", "slurm", "--device", "cuda:1"], "which GPU a job gets is SLURM's to say"),
        (["--executor", "slurm", "--budget", "1h"], "--budget stops a sweep on one device"),
        (["--executor", "slurm", "--export", "timm"], "give it to `vitbench report`"),
    ],
)
def test_bad_input_is_one_line(command: Command, arguments: list[str], says: str) -> None:
    done = command("bench", "--model", "resnet18", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr


def test_without_submitit_it_says_what_to_install(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = command("bench", "--model", "resnet18", "--device", "cpu", "--executor", "submitit-local")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'vitbench[slurm]'" in done.stderr
