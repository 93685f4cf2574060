"""Stage 1: the kernels' own tests, on the device, in every dtype; one row a test in correctness.csv."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from vitbench.certify import recorder
from vitbench.certify.recorder import FAILED, PASSED, PLANNED, SKIPPED, Record
from vitbench.certify.stage import FAIL, NOT_RUN, PASS, Context, Line, Stage

_ROOT = Path(__file__).resolve().parents[2]
_TESTS = Path("tests") / "vitkernels"
#: Of the rehearsal on a CPU: each kernel's reference path once, which takes seconds.
_SMALL = (f"{_TESTS}/test_attention_ops.py", "-k", "token_major or flops")
#: What they prove, compilation for any card and the CPU's own path, needs no GPU and is proved without one.
_ELSEWHERE = ("test_attention_on_cpu.py", "test_depthwise_aot.py")
#: Compiling takes most of a test's time and one core; the tests' tensors are small.
_PROCESSES = 4


def _why_not() -> str:
    if not (_ROOT / _TESTS).is_dir():
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
    chosen = _SMALL if context.small else (str(_TESTS), *(f"--ignore={_TESTS / name}" for name in _ELSEWHERE))
    command = [
        sys.executable, "-m", "pytest", *chosen, "--device", context.device, "-q", "-p", "no:cacheprovider",
        "-p", "vitbench.certify.recorder", "--record-to", str(path),
    ]  # fmt: skip
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**own, "PYTHONPATH": os.pathsep.join(map(str, (_ROOT, _ROOT / "kernels", *filter(None, sys.path))))}
    if context.device != "cpu":
        environment.pop("TRITON_INTERPRET", None)
    with contextlib.ExitStack() as stack:
        running = []
        for index in range(count):
            log = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                [*command, "--record-shard", f"{index}/{count}"],
                cwd=_ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            stack.callback(_end, process)
            running.append((process, log))
        for process, log in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            if process.returncode not in (None, 0, 1, 5):  # 0 passed, 1 some failed, 5 nothing is left to run
                log.seek(0)
                lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
                said = lines[-1] if lines else "no output"
                recorder.append(path, [Record("pytest", FAILED, "", f"ended with {process.returncode}: {said}")])
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _judge(context: Context) -> list[Line]:
    records = recorder.read(_path(context))
    if not records:
        return [Line("kernel tests", NOT_RUN, _why_not() or "not reached yet")]
    of_file: dict[str, list[Record]] = defaultdict(list)
    for record in records.values():
        of_file[record.test.partition("::")[0]].append(record)
    return [_judge_file(name, of_file[name]) for name in sorted(of_file)]


def _judge_file(name: str, records: list[Record]) -> Line:
    counts = {outcome: sum(r.outcome == outcome for r in records) for outcome in (PASSED, FAILED, SKIPPED, PLANNED)}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    if counts[FAILED]:
        first = next(r for r in records if r.outcome == FAILED)
        return Line(name, FAIL, f"{told}; first: {first.test.partition('::')[2] or first.test}: {first.reason}")
    if counts[PLANNED] or not counts[PASSED]:
        return Line(name, NOT_RUN, told + (", not reached yet" if counts[PLANNED] else ""))
    return Line(name, PASS, told)


STAGE = Stage("correctness", "the kernels' tests on the device", 25, _run, _judge)
__all__ = ["STAGE"]
