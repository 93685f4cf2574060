"""From machine code to a row: control flow run, instructions counted, time modelled."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache as once
from functools import cached_property
from pathlib import Path
from typing import Any

from vitkernels import Launch

from vitbench.audit.job import Compiled
from vitbench.audit.model.chips import Chip, chip_for, occupancy
from vitbench.audit.model.profile import launched, profile
from vitbench.audit.model.simulate import Moved, Times, simulate
from vitbench.audit.model.time import failure, model, moved, resources, unbounded
from vitbench.audit.records import Row
from vitbench.audit.sass import execute, listing
from vitbench.audit.sass.graph import Graph, build_graph
from vitbench.audit.sass.trace import trace
from vitbench.audit.traffic import Traffic


@dataclass(frozen=True)
class Examined:
    """A launch's machine code, how often its blocks run, what its loads and stores move, and its row.

    `moved` are the bytes that the row was modelled with. What could not be found out is None.
    """

    compiled: Compiled
    executions: execute.Executions | None
    row: Row
    traffic: Traffic | None = None
    moved: Moved | None = None


def examine(
    launch: Launch, compiled: Compiled, arch: int, cache: Path, traffic: Traffic | None = None, card: str = ""
) -> Examined:
    """Count, simulate and model a launch; control flow that does not end, or nobody knows when, is an error's row.

    Without traffic, bytes are those that load and store instructions can move, masked lanes included.

    Without machine code the row holds the resources alone, status "compiled".
    """
    if not compiled.sass:
        return Examined(compiled, None, resources(launch, compiled, arch))
    chip = chip_for(arch, card)
    graph = build_graph(listing.parse(compiled.sass))
    kernel = _Kernel(graph, launched(launch, compiled, arch), compiled, cache)
    try:
        executions = kernel.executions()
        counted = profile(graph, executions, launch, compiled, arch)
        if counted.endless:
            return Examined(compiled, None, failure(launch, arch, compiled.triton, unbounded(counted)))
        amounts = moved(launch, compiled, counted, chip, traffic)
        simulated = kernel.simulated(launch, chip, amounts)
    except execute.RanAway as problem:
        return Examined(compiled, None, failure(launch, arch, compiled.triton, f"not counted: {problem}"))
    row = model(launch, compiled, counted, chip, amounts, simulated)
    return Examined(compiled, executions, row, traffic, amounts)


class _Kernel:
    """A kernel with its arguments: what running and simulating it gives, or gave the last time."""

    def __init__(self, graph: Graph, seen: execute.Launched, compiled: Compiled, cache: Path) -> None:
        self.graph, self.seen, self.compiled, self.cache = graph, seen, compiled, cache
        shown = (
            source_fingerprint("sass", "sampling.py"),
            compiled.sass,
            sorted(seen.constants.items()),
            seen.grid,
            seen.num_warps,
            sorted(seen.memory.items()),
        )
        self.key = hashlib.sha256(repr(shown).encode()).hexdigest()

    @cached_property
    def machine(self) -> execute.Machine:
        return execute.Machine(self.graph)

    def executions(self) -> execute.Executions:
        """How often blocks run."""
        stored = self.cache / f"{self.key}.counts.gz"
        if found := _read(stored):
            active = {int(index): times for index, times in found["active"].items()}
            return execute.Executions(found["warps"], active, frozenset(found["guessed"]), found["sampled"])
        executions = execute.count(self.graph, self.seen, self.machine)
        _write(stored, {**vars(executions), "guessed": sorted(executions.guessed)})
        return executions

    def simulated(self, launch: Launch, chip: Chip, amounts: Moved) -> Times | None:
        """The time on a card; None when the launch does not fit on its multiprocessors."""
        compiled = self.compiled
        fits = occupancy(
            chip, compiled.registers, compiled.shared_bytes, compiled.num_warps, compiled.tensor_memory_columns
        )
        if not fits.programs:
            return None
        shown = (source_fingerprint("model"), self.key, chip, amounts, fits, launch.moved_bytes or launch.bytes)
        stored = self.cache / (hashlib.sha256(repr(shown).encode()).hexdigest() + ".times.gz")
        if found := _read(stored):
            return Times(**found)
        times = simulate(self.graph, trace(self.graph, self.seen, self.machine), launch, compiled, chip, amounts).times
        _write(stored, vars(times))
        return times


def _read(stored: Path) -> dict[str, Any]:
    """What was kept under a name, or nothing."""
    if not stored.exists():
        return {}
    found: dict[str, Any] = json.loads(gzip.decompress(stored.read_bytes()))
    return found


def _write(stored: Path, record: dict[str, Any]) -> None:
    stored.parent.mkdir(parents=True, exist_ok=True)
    draft = stored.with_suffix(f".{os.getpid()}.part")
    draft.write_bytes(gzip.compress(json.dumps(record).encode(), 3))
    draft.replace(stored)


@once
def source_fingerprint(*parts: str) -> str:
    """Fingerprint of these files and folders of the audit: other code may count otherwise."""
    package = Path(__file__).parents[1]
    files = sorted(
        file for part in parts for file in ([package / part] if part[-3:] == ".py" else (package / part).rglob("*.py"))
    )
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
