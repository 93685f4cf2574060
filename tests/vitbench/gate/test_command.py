"""The gate between two commits of a small repository: measured on the CPU, and audited from machine code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vitbench.errors import InputError
from vitbench.gate.command import merge, root, worktree
from vitbench.gate.options import BENCHMARKS

PLANTED = Path(__file__).parents[1] / "audit" / "planted_kernels.py"
CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--device", default="cpu")
"""
# Its timer counts calls, so that the benchmark's time is exactly the work that the commit under test does.
BENCH = """
import itertools
import pytest
from work import WORK

ticks = itertools.count()


@pytest.mark.benchmark(timer=lambda: next(ticks) * WORK)
@pytest.mark.parametrize("size", [1, 2])
def test_op(benchmark, size):
    benchmark.pedantic(lambda: None, rounds=20)
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


Done = subprocess.CompletedProcess[str]


@pytest.fixture
def gate(command: Callable[..., Done], repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """`vitbench gate` in the checkout, with arguments."""
    monkeypatch.chdir(repository)
    return lambda *arguments: command("gate", *arguments)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose first commit, tagged base, does one unit of work."""
    # Each run of its benchmarks would import hypothesis and trio, for plugins without use there: half of its time.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:anyio")
    checkout = tmp_path / "checkout"
    bench = checkout / BENCHMARKS
    bench.parent.mkdir(parents=True)
    bench.write_text(BENCH)
    (checkout / "tests" / "conftest.py").write_text(CONFTEST)
    (checkout / "work.py").write_text("WORK = 1.0\n")
    (checkout / "planted.py").write_text(PLANTED.read_text())
    git(checkout, "init", "-q")
    git(checkout, "add", "-A")
    git(checkout, "commit", "-qm", "Begin")
    git(checkout, "tag", "base")
    return checkout


def commit(checkout: Path, file: str, edit: Callable[[str], str]) -> None:
    path = checkout / file
    path.write_text(edit(path.read_text()))
    git(checkout, "commit", "-qam", f"Change {file}")


def test_measured_gate_catches_a_slower_commit(repository: Path, gate: Callable[..., Done]) -> None:
    commit(repository, "work.py", lambda text: text.replace("1.0", "1.1"))
    slower = gate("--against", "base", "--device", "cpu", "--markdown", "moved.md")
    assert slower.returncode == 1, slower.stdout + slower.stderr
    assert slower.stderr.splitlines() == [
        "round 1 of 2: base", "round 1 of 2: new", "round 2 of 2: new", "round 2 of 2: base",
    ]  # fmt: skip
    assert slower.stdout.splitlines()[-1] == "slower: 2 cases compared, 2 slower"
    assert "| slower | op[1] | time | 1000 ms | 1100 ms | +10.0% |" in (repository / "moved.md").read_text()
    assert git(repository, "worktree", "list").count("\n") == 0, "the second work tree is gone"


def test_a_suite_of_ones_own_is_measured(repository: Path, gate: Callable[..., Done]) -> None:
    """It knows no --device, and imports the commit under test."""
    folder = repository / "benchmarks"
    folder.mkdir()
    (folder / "test_mine.py").write_text(BENCH)
    git(repository, "rm", "-qr", "tests")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "Benchmark it their way")
    git(repository, "tag", "-f", "base")
    commit(repository, "work.py", lambda text: text.replace("1.0", "0.9"))
    faster = gate("--against", "base", "--device", "cpu", "--benchmarks", "benchmarks", "--rounds", "1")
    assert faster.returncode == 0, faster.stdout + faster.stderr
    assert faster.stdout.splitlines()[-1] == "faster: 2 cases compared, 2 faster"


def test_fixed_runner_compares_with_its_own_file(repository: Path, gate: Callable[..., Done]) -> None:
    file = repository / "runner.json"
    command = [sys.executable, "-m", "pytest", str(BENCHMARKS), "-q", f"--benchmark-json={file}"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**own, "PYTHONPATH": os.pathsep.join([str(repository), *sys.path])}
    subprocess.run(command, cwd=repository, env=environment, check=True, capture_output=True)
    same = gate("--baseline", "runner.json", "--device", "cpu")
    assert same.returncode == 0, same.stdout + same.stderr
    record = json.loads(file.read_text())
    record["machine_info"]["cpu"]["brand_raw"] = "Another CPU"
    file.write_text(json.dumps(record))
    other = gate("--baseline", "runner.json", "--device", "cpu")
    assert (other.returncode, other.stderr.count("\n")) == (2, 1)
    assert "device_name was Another CPU" in other.stderr


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="with a GPU the gate measures")
def test_without_a_gpu_both_commits_are_audited(repository: Path, gate: Callable[..., Done]) -> None:
    options = ("--kernels", "planted.py", "--kernel", "plain", "--arch", "sm_90")
    same = gate("--against", "base", *options)
    assert same.returncode == 0, same.stdout + same.stderr
    assert same.stdout.splitlines()[-1] == "same: 1 launches compared: 1 same"
    commit(repository, "planted.py", lambda text: text.replace("tl.exp2(scores * scale)", "tl.exp2(tl.exp2(scores))"))
    slower = gate("--against", "base", *options, "--markdown", "moved.md")
    assert slower.returncode == 1, slower.stdout + slower.stderr
    assert "modelled time +" in slower.stdout
    assert "| slower | `scores/plain/fwd/bf16/sm_90` |" in (repository / "moved.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--against", "nowhere"), "--against nowhere is no commit"),
        ((), "give either --against COMMIT or --baseline"),
        (("--against", "base", "--baseline", "a.json"), "give either --against COMMIT or --baseline"),
        (("--against", "base", "--rounds", "0"), "--rounds is a count"),
        (("--against", "base", "--device", "tpu"), "device 'tpu' is unknown"),
        (("--baseline", "absent.json"), "absent.json does not exist"),
        (("--against", "base", "--kernels", "absent.py"), "no kernel file absent.py"),
        (("--against", "base", "--threshold", "5"), "write 5% or"),
    ],
)
def test_bad_input_is_one_line(
    repository: Path, gate: Callable[..., Done], arguments: tuple[str, ...], message: str
) -> None:
    done = gate(*arguments)
    assert (done.returncode, done.stderr.count("\n"), message in done.stderr) == (2, 1, True), done.stderr


def test_commit_without_benchmarks_is_named(repository: Path, gate: Callable[..., Done]) -> None:
    git(repository, "rm", "-q", str(BENCHMARKS))
    git(repository, "commit", "-qm", "Drop the benchmarks")
    done = gate("--against", "base", "--device", "cpu")
    assert done.returncode == 2
    assert "has no tests/vitkernels/bench_kernels.py" in done.stderr


def test_work_tree_is_removed_when_something_fails(repository: Path) -> None:
    def fail() -> None:
        with worktree(repository, "base") as tree:
            assert (tree / "work.py").exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert git(repository, "worktree", "list").count("\n") == 0


def test_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not a git repository"):
        root()


def test_merging_keeps_the_order_of_samples_and_drops_what_failed(tmp_path: Path) -> None:
    def run(name: str, times: dict[str, list[float]]) -> Path:
        entries = [{"fullname": case, "stats": {"data": data, "median": 0.0}} for case, data in times.items()]
        path = tmp_path / name
        path.write_text(json.dumps({"machine_info": {}, "benchmarks": entries}))
        return path

    rounds = [run("a", {"x": [1.0, 2.0], "y": [5.0]}), run("b", {"x": [3.0]})]
    (entry,) = json.loads(merge(rounds, tmp_path / "out").read_text())["benchmarks"]
    assert (entry["fullname"], entry["stats"]["data"]) == ("x", [1.0, 2.0, 3.0])


def test_a_cancelled_gate_leaves_no_work_tree(repository: Path) -> None:
    """CI systems cancel a job by SIGTERM."""
    started = repository / "started"
    commit(
        repository,
        "work.py",
        lambda text: f"{text}import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(300)\n",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "vitbench", "gate", "--against", "base", "--device", "cpu"]
    running = subprocess.Popen(command, cwd=repository, env=environment)
    try:
        while not started.exists():
            assert running.poll() is None
            time.sleep(0.1)
        assert git(repository, "worktree", "list").count("\n") == 1
        running.terminate()
        assert running.wait(60) == 130
    finally:
        running.kill()
    assert git(repository, "worktree", "list").count("\n") == 0
