"""A sweep in real worker processes: every case ends as a row, whatever happens to the worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitbench import kernel_bench
from vitbench.bench import sweep, worker
from vitbench.bench.messages import Message, Result
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.bench.sweep import Summary
from vitbench.errors import InputError, Unsupported
from vitbench.measure import device as devices
from vitbench.results import journal
from vitbench.results.row import Environment, Found, Row

QUICK = SweepOptions(min_time=0.02, max_time=0.2, time_limit=120, passes=("latency", "memory"))


def case(model: str = "resnet18", **changes: object) -> Case:
    fields: dict[str, object] = {
        "model": model, "impl": "eager", "mode": "infer", "dtype": "fp32", "layout": "nchw",
        "resolution": (32, 32), "batch": 1, "device": "cpu",
    }  # fmt: skip
    return Case(**{**fields, **changes})  # type: ignore[arg-type]


class Recorder:
    """Keeps what a sweep tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[Row] = []

    def phase(self, case: str | None, what: str) -> None:
        pass

    def row(self, row: Row, done: int, total: int, seconds_left: float | None) -> None:
        self.rows.append(row)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def tick(self) -> None:
        pass


def environment(**changes: Any) -> Environment:
    return replace(devices.environment("cpu"), **changes)


def run(cases: list[Case], path: Path, options: SweepOptions = QUICK, **env: str) -> tuple[Summary, Recorder]:
    recorder = Recorder()
    return sweep.run(cases, path, environment(**env), options, recorder), recorder


def test_what_the_deadline_cuts_off_is_measured_by_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    cases = [case(), case("vit_base_patch16_224", resolution=(224, 224), batch=256)]
    recorder = Recorder()
    start = time.monotonic()
    slow = SweepOptions(min_time=60, max_time=60, time_limit=600, passes=("latency",))
    summary = sweep.run(cases[1:], path, environment(), slow, recorder, start + 4)
    assert time.monotonic() - start < 12
    assert (summary.rows, summary.interrupted, summary.cut_off) == ([], False, cases[1:])
    assert recorder.notes == ["the time is up with 0 of 1 cases done"]
    assert not path.exists(), "what was cut off is no row, and no time-out"
    sweep.run(cases[:1], path, environment(), QUICK, recorder, time.monotonic() + 120)
    assert [row.status for row in journal.read(path)] == ["ok"]
    sweep.run(cases, path, environment(), QUICK, recorder, time.monotonic())
    assert recorder.notes[-2:] == [f"1 of 2 cases are already in {path}", "the time is up with 1 of 2 cases done"]


def test_rows_hold_what_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    modes, impls = ("infer", "train"), ("eager", "sdpa")
    cases = [case(impl=impl, mode=mode, resolution=(64, 64)) for mode in modes for impl in impls]
    summary, _ = run(cases, path)
    assert [row.case for row in summary.rows] == [c.id for c in cases]
    assert [row.case for row in journal.read(path)] == [c.id for c in cases]
    samples = journal.read_samples(path)
    for row in summary.rows:
        assert (row.status, row.reason, row.health.valid) == ("ok", "", True)
        assert row.counts.params_m == 11.689512
        assert (row.published.top1, row.published.coco_ap, row.published.training_data) == (69.76, None, "ImageNet-1k")
        assert row.published.source is not None
        assert "IMAGENET1K_V1" in row.published.source
        assert row.speed.latency_ms_ci_low <= row.speed.latency_ms_p50 <= row.speed.latency_ms_ci_high
        assert row.speed.img_per_s == pytest.approx(1e3 / row.speed.latency_ms_p50)
        assert len(samples[row.case]) == row.speed.samples
        assert row.memory.peak_mem_mib == pytest.approx(row.memory.predicted_mem_mib, rel=0.01)
        error, limit = row.verified.rel_err, row.verified.rel_err_limit
        assert error < 1e-3
        assert limit is None if row.impl == "eager" else error <= limit
        assert 0 < row.utilisation.mfu < 1
        assert row.energy.energy_j_per_img is None
        assert row.compile_s is None
    infer, train = summary.rows[0], summary.rows[2]
    assert train.speed.latency_ms_p50 > infer.speed.latency_ms_p50
    assert train.memory.peak_mem_mib > 3 * infer.memory.static_mem_mib
    assert len(samples[cases[0].id]) == len(samples[cases[1].id]), "implementations are timed in the same rounds"


def test_compiled_training_is_verified_and_timed(tmp_path: Path) -> None:
    small = case("tutorial_vit_depth1", impl="compile", mode="train", resolution=(224, 224))
    summary, _ = run([small], tmp_path / "a.csv")
    (row,) = summary.rows
    assert (row.status, row.reason) == ("ok", "")
    assert row.compile_s > 0
    assert row.verified.rel_err <= row.verified.rel_err_limit


@pytest.mark.fault(
    "out of host memory", "a batch larger than the machine", "the sweep goes on; the row says oom, before it runs"
)
def test_a_case_too_large_for_the_machine_is_oom_before_it_runs(tmp_path: Path) -> None:
    summary, _ = run([case(batch=3_000_000), case()], tmp_path / "a.csv")
    assert [row.status for row in summary.rows] == ["oom", "ok"]
    assert "predicted" in summary.rows[0].reason
    assert summary.rows[0].speed.img_per_s is None
    assert len(summary.failed) == 1


def test_a_case_over_its_time_limit_is_a_row_and_the_sweep_goes_on(tmp_path: Path) -> None:
    options = SweepOptions(min_time=0.02, max_time=0.2, time_limit=4, passes=("latency",))
    slow = case("vit_large_patch16_512", resolution=(512, 512), batch=16)
    summary, _ = run([slow, case()], tmp_path / "a.csv", options)
    assert [row.status for row in summary.rows] == ["timeout", "ok"]
    assert "--time-limit 4" in summary.rows[0].reason


def workers_of(parent: int) -> list[int]:
    """Processes that measure: those below `parent` that lead a session of their own."""
    parents: dict[int, int] = {}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        pid, fields = int(folder.name), stat.rpartition(")")[2].split()
        parents[pid] = int(fields[1])
        if int(fields[3]) == pid and b"vitbench.bench.worker" in command:
            found.append(pid)

    def below(pid: int) -> bool:
        return pid == parent or (pid in parents and below(parents[pid]))

    return [pid for pid in found if below(pid)]


class Killer(Recorder):
    """Kills the worker when it comes to one case, as the kernel's memory killer would."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def phase(self, case: str | None, what: str) -> None:
        if case == self.at:
            for worker in workers_of(os.getpid()):
                os.kill(worker, signal.SIGKILL)


@pytest.mark.fault("kill -9 of the worker", "SIGKILL while it measures", "the sweep goes on; the row says crashed")
def test_a_killed_worker_costs_one_row(tmp_path: Path) -> None:
    cases = [case(batch=batch, impl=impl) for batch in (1, 2, 3) for impl in ("eager", "sdpa")]
    killer = Killer(cases[3].id)
    summary = sweep.run(cases, tmp_path / "a.csv", environment(), QUICK, killer)
    assert [row.status for row in summary.rows] == ["ok", "ok", "ok", "crashed", "ok", "ok"]
    assert "SIGKILL" in summary.rows[3].reason
    assert len(killer.rows) == 6


class Breakable(worker.Worker):
    """A worker whose device one implementation breaks for good, while it is built or while it is timed."""

    alive = 0

    def __init__(self, emit: worker.Emit, bad: str, at: str) -> None:
        super().__init__(SweepOptions(min_time=0.01, max_time=0.02, passes=("latency",)), emit)
        self.bad, self.at, self.broken = bad, at, False
        Breakable.alive += 1

    def reach(self, at: str, impls: list[str]) -> None:
        self.broken |= at == self.at and self.bad in impls
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _prepare(self, case: Case, found: Found) -> worker.Prepared:
        self.reach("building", [case.impl])
        return super()._prepare(case, found)

    def _time(self, prepared: list[worker.Prepared]) -> None:
        self.reach("timing", [one.case.impl for one in prepared])
        super()._time(prepared)


@pytest.mark.fault(
    "CUDA-like sticky error", "an implementation that breaks the device for those timed with it",
    "the rows of the others; the row of whoever broke it says error",
)  # fmt: skip
@pytest.mark.parametrize(("at", "workers"), [("building", 2), ("timing", 3)])
def test_a_broken_device_costs_the_row_of_whoever_broke_it(
    at: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InThisProcess:
        """As LocalExecutor, each new worker with a device that is whole again."""

        def __init__(self, *_: object) -> None:
            self.worker: Breakable | None = None

        def submit(self, cases: list[Case]) -> Future[list[Result]]:
            told: list[Message] = []
            if self.worker is None or self.worker.poisoned:
                self.worker = Breakable(lambda message: None, "sdpa", at)
            self.worker._emit = told.append
            self.worker.run_group(cases)
            future: Future[list[Result]] = Future()
            future.set_result([message for message in told if isinstance(message, Result)])
            return future

        def close(self) -> None: ...

        def kill(self) -> None: ...

    monkeypatch.setattr(sweep, "LocalExecutor", InThisProcess)
    monkeypatch.setattr(Breakable, "alive", 0)
    cases = [case("convit_tiny", impl=impl) for impl in ("sdpa", "eager")]
    summary, _ = run(cases, tmp_path / "a.csv")
    assert [row.status for row in summary.rows] == ["error", "ok"]
    assert "illegal memory access" in summary.rows[0].reason
    assert Breakable.alive == workers


@pytest.mark.parametrize(("device", "current"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_the_gpu_that_is_named_is_the_current_one(
    device: str, current: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else events, graphs and statistics of memory would be those of the first."""
    used: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)

    class Idle(worker.Worker):
        def _prepare(self, case: Case, found: Found) -> worker.Prepared:
            raise Unsupported("there is no such GPU here")

    Idle(SweepOptions(passes=()), lambda message: None).run_group([case(device=device)])
    assert used == current
    monkeypatch.setattr("vitbench.kernel_bench.sweep.devices.check_device", lambda name: name)
    with pytest.raises(InputError, match="no kernel case matches"):
        kernel_bench.run("none", device, ["fp32"], 1.0, tmp_path / "a.csv")
    assert used == 2 * current


def test_a_finished_sweep_measures_nothing_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    run([case(), case(batch=2)], path)
    before = path.read_bytes()
    again, recorder = run([case(), case(batch=2), case(batch=3)], path)
    assert path.read_bytes().startswith(before)
    assert [row.batch for row in recorder.rows] == [3]
    assert again.rows[:2] == journal.read(path)[:2]
    assert [row.batch for row in again.rows] == [1, 2, 3]
    assert recorder.notes == [f"2 of 3 cases are already in {path}"]


def test_another_environment_is_refused_and_fresh_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    run([case()], path)
    with pytest.raises(InputError) as raised:
        run([case(batch=2)], path, torch="1.0")
    assert "torch was" in str(raised.value)
    assert "--fresh" in str(raised.value)
    options = SweepOptions(min_time=0.02, max_time=0.2, passes=("latency",), fresh=True)
    _, recorder = run([case(batch=2)], path, options, torch="1.0")
    assert [row.batch for row in journal.read(path)] == [2]
    assert [row.batch for row in journal.read(tmp_path / "a.1.csv")] == [1]
    assert "a.1.csv" in recorder.notes[0]


@pytest.mark.fault(
    "kill -9 of the parent",
    "SIGKILL of the sweep",
    "every row so far; the worker ends; a second run adds the rest",
)
def test_kill_9_of_the_sweep_and_a_second_run_give_every_row_once(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "a.csv"
    command = [
        sys.executable, "-m", "vitbench", "bench", "--model", "resnet18", "--resolution", "32,64", "--batch", "1,2,3,4",
        "--impl", "eager", "--dtype", "fp32", "--mode", "infer", "--device", "cpu",
        "--min-time", "0.05", "--max-time", "0.2", "--out", str(path),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (path.exists() and len(journal.read(path)) >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (worker,) = workers_of(process.pid)
    process.kill()
    process.wait()
    kept = journal.read(path)
    assert 2 <= len(kept) < 8
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists(), "the worker outlived the sweep"
    request.getfixturevalue("served")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = journal.read(path)
    assert rows[: len(kept)] == kept
    assert sorted((row.resolution, row.batch) for row in rows) == [(r, b) for r in ("32", "64") for b in (1, 2, 3, 4)]


@pytest.mark.usefixtures("served")
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    command = [
        sys.executable, "-m", "vitbench", "bench", "--model", "resnet18", "--resolution", "64", "--batch",
        "1,2,3,4,5,6", "--dtype", "fp32", "--mode", "infer", "--device", "cpu",
        "--min-time", "0.3", "--max-time", "0.3", "--out", str(path),
    ]  # fmt: skip
    # A suite that runs in the background ignores SIGINT, and its children would too.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (path.exists() and journal.read(path)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in out
    assert "Traceback" not in out + error
    assert 1 <= len(journal.read(path)) < 6
