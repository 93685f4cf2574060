"""Is this checkout slower than another commit? Measured side by side on a GPU, else audited from machine code."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitbench import columns
from vitbench.columns import Shown
from vitbench.errors import InputError
from vitbench.gate import measurements, verdicts
from vitbench.gate.compare import Comparison, Thresholds, compare, parse_thresholds
from vitbench.gate.options import BENCHMARKS, GateOptions
from vitbench.measure import device as devices
from vitbench.process import Process, python_environment

ROUNDS = 2  # of each: A B B A, so that a steady drift falls on both alike


def root() -> Path:
    """The git checkout around the current folder.

    Raises: InputError outside of one.
    """
    return Path(_git(Path.cwd(), "rev-parse", "--show-toplevel"))


def run(given: GateOptions) -> int:
    """What `vitbench gate` does; 0 no regression, 1 a regression, 2 not comparable.

    Raises: InputError.
    """
    thresholds = parse_thresholds(given.threshold or [])
    against, baseline = given.against, given.baseline
    if bool(against) == bool(baseline):
        raise InputError("give either --against COMMIT or --baseline FILE.json, what to compare this checkout with")
    if given.rounds < 1:
        raise InputError(f"--rounds is a count of 1 or more, got {given.rounds}")
    checkout = root()
    device = devices.check_device(given.device) if given.device else devices.default_device().replace("cpu", "")
    if not device and not baseline:
        if given.json or given.threshold:
            raise InputError(
                "there is no GPU here, so machine code is audited, which takes neither --json nor --threshold"
            )
        return audit_gate(checkout, against, given.audited, given.markdown, given)

    columns.check(verdicts.table(Comparison([])), given)

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if baseline:
        result = fixed_gate(checkout, baseline, device or "cpu", thresholds, given.benchmarks)
    else:
        result = measured_gate(checkout, against, device, thresholds, given.rounds, tell, given.benchmarks)
    verdicts.emit(result, given.markdown, given.json, given)
    return result.exit_code


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError as problem:
        raise InputError("the gate compares commits and needs git") from problem
    except subprocess.CalledProcessError as problem:
        said = (problem.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("fatal: ")
        raise InputError(f"git {arguments[0]} failed: {said}") from problem
    return done.stdout.strip()


@contextmanager
def worktree(checkout: Path, reference: str) -> Iterator[Path]:
    """A second work tree of the repository at `reference`, removed at the end.

    Raises: InputError when there is no such commit.
    """
    try:
        commit = _git(checkout, "rev-parse", "--verify", "--quiet", reference + "^{commit}")
    except InputError as problem:
        raise InputError(
            f"--against {reference} is no commit of {checkout}; give a branch, a tag or a hash"
        ) from problem
    with tempfile.TemporaryDirectory(prefix="vitbench-gate-") as folder:
        tree = Path(folder) / "base"
        _git(checkout, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            yield tree
        finally:
            _git(checkout, "worktree", "remove", "--force", str(tree))


def _environment(*first: Path) -> dict[str, str]:
    """A process's environment in which these folders, not what is installed, provide vitbench and vitkernels."""
    # pytest-benchmark would refuse to measure in what it takes for a worker of pytest-xdist.
    return python_environment(*first, without=["PYTEST_XDIST"])


def run_benchmarks(checkout: Path, device: str, out: Path, benchmarks: Path = BENCHMARKS) -> None:
    """Runs the benchmarks of a checkout, its own code and its own file, into a pytest-benchmark JSON.

    Args:
        benchmarks: file or folder in the checkout; only vitbench's own take the device as an option.

    Raises: InputError when the checkout has none or they fail.
    """
    file = checkout / benchmarks
    if not file.exists():
        raise InputError(f"{checkout} has no {benchmarks} to run; choose a commit that has it, or give --benchmarks")
    command = [sys.executable, "-m", "pytest", str(file), "--benchmark-only", "--benchmark-json", str(out), "-q"]
    command += ["--device", device] if benchmarks == BENCHMARKS else [f"--rootdir={checkout}"]
    environment = _environment(checkout, checkout / "kernels", checkout / "src")
    with Process(command, checkout, environment, quiet=True) as process:
        # pytest's 1: some benchmarks failed. They are missing from the JSON, and compare counts them.
        if process.wait() not in (0, 1) or not out.exists():
            raise InputError(f"the benchmarks of {checkout} could not run (pytest: {process.how_it_ended()})")


def merge(rounds: Sequence[Path], out: Path) -> Path:
    """One JSON of several runs of the same benchmarks: the samples of each in order, the rest from the first.

    A benchmark that any run lacks is left out: it failed there.
    """
    texts = [json.loads(path.read_text(encoding="utf-8")) for path in rounds]
    merged: dict[str, Any] = texts[0]
    by_name = [{entry["fullname"]: entry for entry in text["benchmarks"]} for text in texts]
    kept = []
    for entry in merged["benchmarks"]:
        found = [names[entry["fullname"]] for names in by_name if entry["fullname"] in names]
        if len(found) == len(texts):
            entry["stats"] = {**entry["stats"], "data": [t for one in found for t in one["stats"]["data"]]}
            kept.append(entry)
    merged["benchmarks"] = kept
    out.write_text(json.dumps(merged), encoding="utf-8")
    return out


def interleaved(
    base: Path,
    new: Path,
    device: str,
    folder: Path,
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda text: None,
    benchmarks: Path = BENCHMARKS,
) -> tuple[Path, Path]:
    """Runs the benchmarks of two checkouts in turns, A B, B A, ...; returns the merged JSON of each.

    Args:
        rounds: how often each is run.
        tell: called with what runs next.

    Raises: InputError as `run_benchmarks`.
    """
    files: dict[Path, list[Path]] = {base: [], new: []}
    for number in range(rounds):
        order = (base, new) if number % 2 == 0 else (new, base)
        for checkout in order:
            name = "base" if checkout is base else "new"
            tell(f"round {number + 1} of {rounds}: {name}")
            out = folder / f"{name}-{number}.json"
            run_benchmarks(checkout, device, out, benchmarks)
            files[checkout].append(out)
    return merge(files[base], folder / "base.json"), merge(files[new], folder / "new.json")


def measured_gate(
    checkout: Path,
    reference: str,
    device: str,
    thresholds: Thresholds,
    rounds: int = ROUNDS,
    tell: Callable[[str], None] = lambda text: None,
    benchmarks: Path = BENCHMARKS,
) -> Comparison:
    """Benchmarks `reference` and this checkout interleaved in one session, and compares.

    Raises: InputError.
    """
    with worktree(checkout, reference) as tree, tempfile.TemporaryDirectory() as scratch:
        base, new = interleaved(tree, checkout, device, Path(scratch), rounds, tell, benchmarks)
        return compare(measurements.load(base), measurements.load(new), thresholds)


def fixed_gate(
    checkout: Path, baseline: Path, device: str, thresholds: Thresholds, benchmarks: Path = BENCHMARKS
) -> Comparison:
    """Benchmarks this checkout alone against a committed JSON of the same runner.

    Raises: InputError, also when the baseline is of another machine or other versions.
    """
    before = measurements.load(baseline)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "new.json"
        run_benchmarks(checkout, device, out, benchmarks)
        return compare(before, measurements.load(out), thresholds)


def audit_gate(
    checkout: Path, reference: str, arguments: Sequence[str], markdown: Path | None = None, asked: Shown = columns.ALL
) -> int:
    """Audits the kernels of `reference` and of this checkout, both with the vitbench that runs; prints what moved.

    Args:
        arguments: further options of `vitbench audit`.

    Returns: its exit code.

    Raises: InputError.
    """
    with worktree(checkout, reference) as tree, tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "base.csv"
        first = _audit(tree, [*arguments, "--out", str(before)], capture_output=True)
        if not before.exists():
            said = first.stderr.strip().splitlines()[-1:] or [f"exit code {first.returncode}"]
            raise InputError(f"the kernels of {reference} could not be audited: {said[0].removeprefix('vitbench: ')}")
        options = [*(["--markdown", str(markdown.resolve())] if markdown else []), *asked.arguments]
        return _audit(checkout, [*arguments, "--baseline", str(before), *options]).returncode


def _audit(checkout: Path, arguments: Sequence[str], capture_output: bool = False) -> subprocess.CompletedProcess[str]:
    """`vitbench audit` in a checkout: its kernels, but the vitbench of this process, so that one model judges both."""
    own = Path(__file__).resolve().parents[1]
    folders = [checkout / "kernels", own if (checkout / "vitbench").is_dir() else checkout / "src", checkout]
    # -P keeps the current folder off the front of the path, where the checkout's own vitbench would win.
    command = [sys.executable, "-P", "-m", "vitbench", "audit", *arguments]
    return subprocess.run(
        command, cwd=checkout, env=_environment(*folders), capture_output=capture_output, text=True, check=False
    )
