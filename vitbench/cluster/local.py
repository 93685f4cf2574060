"""Shards on the devices of this machine: one at a time on each, and never two on one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitbench.cluster.folder import Run, Shard, State
from vitbench.errors import InputError
from vitbench.measure import device as devices
from vitbench.process import python_environment

#: How often a shard whose process is killed is begun again.
RESTARTS = 2
#: Seconds that a shard has to end in after it was told to.
ENDING = 15.0


@dataclass(frozen=True)
class Slot:
    """A device, and what a process must find in its environment to see that device alone."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)


def slots(names: str) -> list[Slot]:
    """Devices such as "cuda:0,cuda:1", each seen as `cuda` by what runs on it, so that cases have the same ids.

    Raises: InputError on one that is not there, that is named twice, or of another kind than the rest.
    """
    wanted = [devices.check_device(name.strip()) for name in names.split(",") if name.strip()]
    plain = ["cuda:0" if name == "cuda" else name for name in wanted]
    if twice := sorted({name for name in plain if plain.count(name) > 1}):
        raise InputError(f"--device names {twice[0]} twice, and no two timings run on one device")
    if len({name.partition(":")[0] for name in plain}) > 1:
        raise InputError(f"--device {names}: a run is on GPUs or on the CPU; give one kind")
    return [Slot(name, {} if name == "cpu" else {"CUDA_VISIBLE_DEVICES": _visible(name)}) for name in plain]


def _visible(name: str) -> str:
    """The GPU as CUDA_VISIBLE_DEVICES names it, counted in those that this process sees."""
    number = int(name.partition(":")[2])
    seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return seen[number] if seen else str(number)


@dataclass
class _Running:
    shard: Shard
    process: subprocess.Popen[bytes]


def work(run: Run, shards: Iterable[Shard], on: Sequence[Slot], look: Callable[[], object]) -> bool:
    """Runs shards, each on the first device that is free, and calls `look` meanwhile; whether all are done.

    Ctrl-C tells those that run to stop, waits for them, and goes on up.
    """
    waiting = [(shard, 0) for shard in shards]
    tries: dict[int, int] = {}
    running: dict[str, _Running] = {}
    failed = False
    try:
        while waiting or running:
            for slot in on:
                if slot.name not in running and waiting:
                    shard, tried = waiting.pop(0)
                    tries[shard.number] = tried
                    running[slot.name] = _Running(shard, _start(run, shard, slot))
            time.sleep(0.25)
            look()
            for name, one in list(running.items()):
                code = one.process.poll()
                if code is None:
                    continue
                del running[name]
                _close(one.process)
                if code < 0 and tries[one.shard.number] < RESTARTS:
                    waiting.append((one.shard, tries[one.shard.number] + 1))
                elif code:
                    failed = True
                    if code < 0:
                        one.shard.say(State("stopped", why=f"killed by signal {-code}, {RESTARTS + 1} times"))
    finally:
        for one in running.values():
            _close(one.process)  # which tells it to stop
        end = time.monotonic() + ENDING
        for one in running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.0, end - time.monotonic()))
            one.process.kill()
            one.process.wait()
        look()
    return not failed


def _start(run: Run, shard: Shard, slot: Slot) -> subprocess.Popen[bytes]:
    """In a session of its own, so that Ctrl-C reaches this process alone."""
    with log_of(run, shard).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "vitbench.cluster.shard", str(run.folder), str(shard.number)],
            env={**python_environment(), **slot.environment},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def log_of(run: Run, shard: Shard) -> Path:
    return run.jobs / f"{shard.folder.name}.log"


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


__all__ = ["Slot", "log_of", "slots", "work"]
