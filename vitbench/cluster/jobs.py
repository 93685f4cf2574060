"""Shards as jobs that outlive this process: of SLURM, or of this machine without one. Both through submitit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Protocol

from vitbench.cluster import shard as shards
from vitbench.cluster.folder import Run, Shard, State
from vitbench.errors import InputError, nearest
from vitbench.process import python_environment

INSTALL = "--executor {} needs submitit: pip install 'vitbench[slurm]'"
#: The elements of a job array: as many as SLURM takes where its MaxArraySize is not set.
ARRAY = 1000
#: Minutes for what stays on this machine, where nothing takes them away.
FOR_EVER = 60 * 24 * 365


class Executor(Protocol):
    """Where shards run while this process need not."""

    def submit(self, run: Run, shards: Sequence[Shard]) -> None:
        """Raises: InputError when they are not taken."""

    def live(self, run: Run) -> set[int]:
        """The shards whose job is queued or runs, as far as one can know."""


def _submitit(executor: str) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise InputError(INSTALL.format(executor)) from error
    return submitit


class Slurm:
    """Job arrays of SLURM.

    Args:
        partition: or "" for the cluster's own default.
        gpus: of each task.
        given: `--slurm KEY=VALUE`, as typed.
        minutes: the time limit where none is given.

    Raises: InputError where there is no SLURM or no submitit, and on a parameter that submitit does not know.
    """

    def __init__(self, partition: str, gpus: int, given: Sequence[str], minutes: int) -> None:
        self._submitit = _submitit("slurm")
        if not (shutil.which("sbatch") and shutil.which("srun")):
            raise InputError(
                "--executor slurm needs SLURM's sbatch and srun, which are not here: run it where jobs are submitted, "
                "or give --executor submitit-local"
            )
        self.parameters = self._parameters(partition, gpus, given, minutes)

    def _parameters(self, partition: str, gpus: int, given: Sequence[str], minutes: int) -> dict[str, Any]:
        plain = self._submitit.AutoExecutor._typed_parameters()
        known = sorted(set(self._submitit.SlurmExecutor._valid_parameters()) | set(plain))
        chosen: dict[str, Any] = {"partition": partition or None, "gpus_per_task": gpus or None, "name": "vitbench"}
        chosen["timeout_min"] = minutes
        for one in given:
            name, equals, text = one.partition("=")
            name = name.strip().removeprefix("slurm_").replace("-", "_")
            if not equals:
                raise InputError(f"--slurm {one!r} is no KEY=VALUE, such as mem_gb=32")
            if name not in known:
                raise InputError(f"--slurm {name!r} is no parameter of submitit: {nearest(name, known)}")
            chosen[name] = _value(name, text, plain.get(name))
        more = chosen.get("additional_parameters") or {}
        if not isinstance(more, dict):
            raise InputError('--slurm additional_parameters is a JSON object, such as \'{"reservation": "mine"}\'')
        # A job whose node fails goes back into the queue; gpus-per-task is refused without the number of tasks.
        chosen["additional_parameters"] = {"requeue": True, "ntasks": 1, **more}
        if (cpus := chosen.get("cpus_per_task")) and not chosen.get("srun_args"):
            chosen["srun_args"] = [f"--cpus-per-task={cpus}"]  # which srun no more takes from the job since 22.05
        for name, common in (("time", "timeout_min"), ("mem", "mem_gb"), ("job_name", "name")):
            if name in chosen:
                chosen.pop(common, None)
        return {
            name if name in plain else f"slurm_{name}": value for name, value in chosen.items() if value is not None
        }

    def submit(self, run: Run, shards_: Sequence[Shard]) -> None:
        executor = self._submitit.AutoExecutor(folder=run.jobs, cluster="slurm")
        try:
            executor.update_parameters(**self.parameters)
        except (AssertionError, NameError, ValueError, TypeError) as error:
            raise InputError(f"--slurm: {error}") from error
        for first in range(0, len(shards_), ARRAY):
            some = shards_[first : first + ARRAY]
            for shard in some:
                shard.say(State())
            try:
                # What sbatch says is in the error too.
                with _importing(self._submitit), contextlib.redirect_stderr(io.StringIO()):
                    jobs = executor.map_array(shards.run, [str(run.folder)] * len(some), [s.number for s in some])
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                raise InputError(f"SLURM did not take the jobs: {error}") from error
            for shard, job in zip(some, jobs, strict=True):
                run.submitted(shard.number, job.job_id)

    def live(self, run: Run) -> set[int]:
        asked = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True, timeout=120)
        queued = set(asked.stdout.split())
        return {shard for shard, job in run.job_of().items() if job in queued}


class Here:
    """Processes of this machine that outlive this one. Those of one device wait for each other.

    Args:
        gpus: their numbers, dealt to the shards in turns; none for the CPU.

    Raises: InputError where there is no submitit.
    """

    def __init__(self, gpus: Sequence[int]) -> None:
        self._submitit = _submitit("submitit-local")
        self._gpus = gpus

    def submit(self, run: Run, shards_: Sequence[Shard]) -> None:
        executor = self._submitit.LocalExecutor(folder=run.jobs)
        # Ctrl-C and the end of the terminal are not theirs.
        parameters: dict[str, Any] = {"timeout_min": FOR_EVER, "setup": ["trap '' INT HUP"]}
        for place, shard in enumerate(shards_):
            if self._gpus:
                parameters |= {"gpus_per_node": 1, "visible_gpus": [self._gpus[place % len(self._gpus)]]}
            executor.update_parameters(**parameters)
            shard.say(State())
            with _importing(self._submitit):
                job = executor.submit(shards.run, str(run.folder), shard.number)
            run.submitted(shard.number, job.job_id)

    def live(self, run: Run) -> set[int]:
        over = {shard.number for shard in run.shards if shard.state().state in ("done", "stopped", "lost")}
        there = {shard for shard, job in run.job_of().items() if os.path.exists(f"/proc/{job}/cmdline")}
        return there - over


def _importing(submitit: Any) -> Any:
    """Lets jobs import what this process does."""
    return submitit.helpers.environment_variables(PYTHONPATH=python_environment()["PYTHONPATH"])


def _value(name: str, text: str, kind: type | None) -> Any:
    """A number, true, false, a JSON list or object, or else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if kind in (int, float) and (
        isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float))
    ):
        raise InputError(f"--slurm {name}={text} should be a number" + (" without a fraction" if kind is int else ""))
    return str(value) if kind is str else value


__all__ = ["Executor", "Here", "Slurm"]
