"""The audit end to end: launches to rows."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from vitkernels import Launch

from vitbench.audit import registry
from vitbench.audit.job import Compiled, Failed, job_of
from vitbench.audit.model.chips import CHIPS, chip_for
from vitbench.audit.model.profile import Profile, launched, profile
from vitbench.audit.model.simulate import Moved, Simulated, simulate
from vitbench.audit.model.time import failure
from vitbench.audit.records import Row
from vitbench.audit.sass import listing
from vitbench.audit.sass.execute import Executions
from vitbench.audit.sass.graph import build_graph
from vitbench.audit.sass.trace import trace
from vitbench.audit.workers.examine import Examined
from vitbench.audit.workers.pool import examine_all
from vitbench.errors import InputError


@dataclass(frozen=True)
class Audited:
    """A launch on one architecture, its row, and (unless it failed) its machine code and block executions."""

    launch: Launch
    arch: int
    row: Row
    compiled: Compiled | None = None
    executions: Executions | None = None
    moved: Moved | None = None

    @cached_property
    def profile(self) -> Profile | None:
        """Counts by instruction and loop, made when asked for; None when the launch failed."""
        if self.compiled is None or self.executions is None:
            return None
        graph = build_graph(listing.parse(self.compiled.sass))
        return profile(graph, self.executions, self.launch, self.compiled, self.arch)

    @cached_property
    def simulated(self) -> Simulated | None:
        """Where warps waited, simulated again when asked for; None when the launch failed."""
        if self.compiled is None or self.moved is None or self.row.status != "ok":
            return None
        graph = build_graph(listing.parse(self.compiled.sass))
        traced = trace(graph, launched(self.launch, self.compiled, self.arch))
        chip = chip_for(self.arch, self.row.card)
        return simulate(graph, traced, self.launch, self.compiled, chip, self.moved)


def parse_arch(text: str) -> list[int]:
    """[80, 90] from "sm_80,sm_90".

    Raises: InputError.
    """
    known = {f"sm_{arch}": arch for arch in CHIPS}
    found = []
    for part in (piece.strip() for piece in text.split(",")):
        name = part if part.startswith("sm_") else f"sm_{part}"
        if name not in known:
            raise InputError(f"unknown architecture {part!r}; allowed: {', '.join(known)}")
        found.append(known[name])
    return list(dict.fromkeys(found))


def audit(
    names: Sequence[str] = ("vitkernels",),
    pattern: str = "*",
    archs: Sequence[int] = (80, 90, 100),
    processes: int | None = None,
    cache: Path | None = None,
    triton_path: str | None = None,
    done: Callable[[int, int], None] | None = None,
    counted: bool = True,
    part: tuple[int, int] = (1, 1),
    card: str = "",
) -> list[Audited]:
    """Compile and cost every registered launch that matches, on every architecture.

    Args:
        names: modules or packages that hold kernels, or paths of .py files.
        pattern: comma-separated wildcards on launch ids.
        processes: compiling processes; default the number of CPUs.
        cache: folder of finished compilations.
        triton_path: folder of another triton package to compile with.
        done: called with (finished, total).
        part: (k, n) examines the k-th of n parts, launches that compile to the same code together.
        counted: False compiles only; rows then hold registers, spills, shared memory, occupancy and matrix instruction.
        card: which card to model, of the one architecture given; default the usual one of each.

    Raises: InputError when nothing matches, or numba is missing, which simulates. A launch that fails to compile is a
        row with status "error".
    """
    chosen = [pair for pair in planned(names, pattern, archs) if _part_of(*pair, part[1]) == part[0]]
    return audit_launches(chosen, processes, cache, triton_path, done, counted, card=card)


def planned(names: Sequence[str], pattern: str, archs: Sequence[int]) -> list[tuple[Launch, int]]:
    """Every registered launch that matches, on every architecture. Raises: InputError when nothing does."""
    return [(launch, arch) for arch in archs for launch in registry.launches(names, arch, pattern)]


def _part_of(launch: Launch, arch: int, count: int) -> int:
    """Which of `count` parts a launch is in: the same on every machine, and alike launches together."""
    return zlib.crc32(job_of(launch, arch).likeness.encode()) % count + 1 if count > 1 else 1


def audit_launches(
    planned: Sequence[tuple[Launch, int]],
    processes: int | None = None,
    cache: Path | None = None,
    triton_path: str | None = None,
    done: Callable[[int, int], None] | None = None,
    counted: bool = True,
    stop: Callable[[], bool] = lambda: False,
    card: str = "",
) -> list[Audited]:
    """The same for given (launch, architecture) pairs, without those that were not begun when `stop` said True.

    Raises: InputError for a launch that cannot be examined anywhere, or without numba.
    """
    if counted and find_spec("numba") is None:
        raise InputError("the audit simulates with numba, which is not installed: pip install 'vitbench[audit]'")
    finished = 0

    def tick(_: int) -> None:
        nonlocal finished
        finished += 1
        if done:
            done(finished, len(planned))

    try:
        jobs = [job_of(launch, arch, counted, card) for launch, arch in planned]
    except ValueError as problem:
        raise InputError(str(problem)) from problem
    results = examine_all(jobs, processes or os.cpu_count() or 1, cache, triton_path, tick, stop)
    pairs = zip(planned, results, strict=True)
    return [_audited(launch, arch, result) for (launch, arch), result in pairs if result is not None]


def _audited(launch: Launch, arch: int, result: Examined | Failed) -> Audited:
    if isinstance(result, Failed):
        return Audited(launch, arch, failure(launch, arch, "", result.reason))
    return Audited(launch, arch, result.row, result.compiled, result.executions, result.moved)
