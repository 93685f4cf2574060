"""Stage 2: the kernels' own tests, on the device, in every dtype; one row a test in correctness.csv.

Which tests need a device they say themselves: the marker `on_device`, and `rehearsal` for the few that a CPU runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

from vitbench.certify import recorder
from vitbench.certify.recorder import FAILED, OPEN, PASSED, PLANNED, SKIPPED, STARTED, Record
from vitbench.certify.stage import FAIL, NOT_RUN, PASS, Context, Line, Stage
from vitbench.process import Process, python_environment

_ROOT = Path(__file__).resolve().parents[2]
#: Where the kernels are tested, alone and in whole models; last those that take longest.
_TESTS = (Path("tests", "vitkernels"), Path("tests", "vitbench", "ops"))
#: Compiling takes most of a test's time and one core; the tests' tensors are small.
_PROCESSES = 4


def _why_not() -> str:
    if not (_ROOT / _TESTS[0]).is_dir():
        return "the tests are in vitbench's repository, not in the installed package"
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed; `make wheels` prepares what a machine lacks" if missing else ""


def _path(context: Context) -> Path:
    return context.out / "correctness.csv"


def _run(context: Context, deadline: float) -> bool:
    if _why_not():
        return False
    count = 1 if context.small else min(_PROCESSES, os.cpu_count() or 1)
    path = _path(context).resolve()
    marked = "rehearsal" if context.small else "on_device"
    command = [
        sys.executable, "-m", "pytest", *_where(marked, context.small), "-m", marked, "--device", context.device, "-q",
        "-p", "no:cacheprovider", "-p", "vitbench.certify.recorder", "--record-to", str(path),
        "--continue-on-collection-errors",
    ]  # fmt: skip
    interprets = [] if context.device == "cpu" else ["TRITON_INTERPRET"]
    environment = python_environment(_ROOT, _ROOT / "kernels", without=["PYTEST_", *interprets])
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the tests need none of those
    waiting = list(range(count))
    with contextlib.ExitStack() as stack:
        running: dict[int, Process] = {}
        while waiting or running:
            for index in waiting:
                shard = f"{index}/{count}"
                process = Process([*command, "--record-shard", shard], _ROOT, environment, quiet=True)
                running[index] = stack.enter_context(process)
            ended = {index: process for index, process in running.items() if process.code() is not None}
            waiting = [i for i, process in ended.items() if _again(process, path, f"pytest shard {i}/{count}")]
            running = {index: process for index, process in running.items() if index not in ended}
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
    return False


def _where(marked: str, small: bool) -> list[str]:
    """The folders of tests; of a rehearsal the files that name its marker, since to import the others takes seconds."""
    folders = [folder for folder in _TESTS if (_ROOT / folder).is_dir()]
    tests = [file for folder in folders if small for file in sorted((_ROOT / folder).rglob("test_*.py"))]
    named = [file.relative_to(_ROOT) for file in tests if marked in file.read_text(encoding="utf-8")]
    return [str(path) for path in named or folders]


def _again(process: Process, path: Path, name: str) -> bool:
    """Whether a new process must go on with the tests of one that has ended; fails the test that ended it.

    A process that ended otherwise is a failure by its own `name`, until it does not.
    """
    if process.code() == recorder.BROKEN:
        return True
    known = recorder.read(path)
    if process.code() in (0, 1, 5):  # passed, some failed, nothing is left to run
        if name in known:
            recorder.append(path, [Record(name, PASSED, "", "")])
        return False
    how = process.how_it_ended()
    at = [record.test for record in known.values() if (record.outcome, record.reason) == (STARTED, str(process.pid))]
    recorder.append(path, [Record(test, FAILED, "", f"ended its process: {how}") for test in at or [name]])
    return bool(at)


def _judge(context: Context) -> list[Line]:
    records = recorder.read(_path(context))
    if not records:
        return [Line("kernel tests", NOT_RUN, _why_not() or "not reached yet")]
    of_file: dict[str, list[Record]] = defaultdict(list)
    for record in records.values():
        if "::" not in record.test and record.outcome == PASSED:
            continue  # a file or a process that failed once and is right now
        of_file[record.test.partition("::")[0]].append(record)
    return [_judge_file(name, of_file[name]) for name in sorted(of_file)]


def _judge_file(name: str, records: list[Record]) -> Line:
    counts = {outcome: sum(r.outcome == outcome for r in records) for outcome in (PASSED, FAILED, SKIPPED, *OPEN)}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    if counts[FAILED]:
        first = next(r for r in records if r.outcome == FAILED)
        return Line(name, FAIL, f"{told}; first: {first.test.partition('::')[2] or first.test}: {first.reason}")
    if counts[PLANNED] or counts[STARTED] or not counts[PASSED]:
        return Line(name, NOT_RUN, told + (", not reached yet" if counts[PLANNED] else ""))
    return Line(name, PASS, told)


STAGE = Stage("correctness", "the kernels' tests on the device", 25, _run, _judge)
__all__ = ["STAGE"]
