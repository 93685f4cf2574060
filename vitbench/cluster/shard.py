"""One shard, measured where this runs: by a job of a cluster, or by a process of this machine.

It goes on from the rows that there are, so it may be killed at any time and begun again, also on another machine: rows
measured there go to a file of their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vitbench.bench import sweep
from vitbench.bench.progress import describe
from vitbench.cluster import folder as folders
from vitbench.cluster import locks
from vitbench.cluster.folder import BEAT, Shard, State
from vitbench.errors import InputError
from vitbench.measure import device as devices
from vitbench.results import journal
from vitbench.results.row import Found, Row
from vitbench.warm import CANCELLING

#: Attempts in a row without a new row after which a shard is not begun again by itself.
FRUITLESS = 3
#: Seconds in which whoever had the shard before must have ended.
PATIENCE = 300.0


class Teller:
    """Says how far a shard is: in its state, at least every BEAT seconds, and in the job's log."""

    def __init__(self, shard: Shard, state: State) -> None:
        self._shard = shard
        self.state = state
        self._said_at = 0.0
        self.say()

    def say(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        self._shard.say(self.state)
        self._said_at = time.monotonic()

    def phase(self, case: str | None, what: str) -> None:
        self.state = replace(self.state, at=f"{what} {case or 'all implementations'}")

    def row(self, row: Row, done: int, total: int, seconds_left: float | None) -> None:
        self.note(f"[{done}/{total}] {row.case}  {describe(row)}")

    def note(self, text: str) -> None:
        print(text, flush=True)

    def tick(self) -> None:
        if time.monotonic() - self._said_at > BEAT:
            self.say()


def run(run_folder: str, number: int) -> int:
    """Measures what is left of a shard.

    Returns: 0 when every case has a row, 130 when it was stopped before: the next call goes on.

    Raises: InputError when this machine cannot, which the shard's state says too.
    """
    found = folders.open_run(Path(run_folder))
    shard = found.shard(number)
    before, there = shard.state(), shard.done()
    fruitless = before.fruitless + 1 if before.job and before.rows == there else 0
    fresh = State("waiting", _job(), os.uname().nodename, rows=there, fruitless=fruitless)
    with _noticing() as notices:
        teller = Teller(shard, fresh)
        try:
            with locks.held(shard.folder / "lock", teller.tick, PATIENCE):
                stopped = _sweep(found, shard, teller)
        except KeyboardInterrupt:
            stopped = True
        except Exception as error:
            teller.say(state="stopped", why=str(error) if isinstance(error, InputError) else repr(error))
            raise
        if not stopped:
            teller.say(state="done", at="", why="")
            return 0
        why = notices[-1] if notices else "interrupted"
        if fruitless + 1 >= FRUITLESS and shard.done() == there:
            why += f", as in {fruitless} attempts before without a new row: give it more time"
            teller.say(state="stopped", why=why)
        else:
            teller.say(state="stopped", why=why)
            _requeue(teller)
        return 130


def _job() -> str:
    """What to name to whoever runs this, to have it stopped."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID") or f"process {os.getpid()}"


@contextmanager
def _noticing() -> Iterator[list[str]]:
    """Makes the first notice end what runs in this thread; those that follow change nothing more."""
    told: list[str] = []

    def notice(number: int, frame: FrameType | None) -> NoReturn:
        for one in CANCELLING:
            signal.signal(one, signal.SIG_IGN)
        told.append(signal.Signals(number).name)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, notice) for one in CANCELLING}
    try:
        yield told
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _sweep(found: folders.Run, shard: Shard, teller: Teller) -> bool:
    """Whether it was stopped before every case had a row."""
    cases = [case for _, case in shard.cases()]
    if {case.id for case in cases} <= {row.case for row in shard.rows()}:
        return False
    environment = devices.environment(devices.check_device(cases[0].device))
    teller.say(device=environment.device_name, at="waiting for the device")
    with locks.held(locks.of_device(environment.device_uuid or "device"), teller.tick):
        path = shard.rows_on(sweep.row_of(cases[0], Found(), environment, found.options.setup, ""))
        elsewhere = {row.case for other in shard.row_files() if other != path for row in journal.read(other)}
        mine = [case for case in cases if case.id not in elsewhere]
        teller.say(state="running", at="starting the worker")
        summary = sweep.run(mine, path, environment, found.options, teller)
    return len(summary.rows) < len(mine)


def _requeue(teller: Teller) -> None:
    """Puts a job of SLURM's that was given notice back into the queue, unless it is over because it was cancelled.

    By its place in the array: the last element's own number is the array's too.
    """
    if "SLURM_JOB_ID" not in os.environ or not shutil.which("squeue"):
        return
    job = teller.state.job
    asked = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=60)
    if asked.stdout.strip() != "RUNNING":
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        teller.say(state="queued", why=f"requeued after {teller.state.why}")
    teller.note(f"requeued job {job}" if done.returncode == 0 else f"not requeued: {done.stderr.strip()}")


def main() -> None:
    """`python -m vitbench.cluster.shard RUN NUMBER`: ends when its stdin does, so with whoever started it."""

    def listen() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
    try:
        sys.exit(run(sys.argv[1], int(sys.argv[2])))
    except InputError as error:
        sys.exit(f"vitbench: {error}")


if __name__ == "__main__":
    main()
