"""From machine code to a row: control flow run, instructions counted, time modelled."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path

from vitkernels import Launch

from vitbench.audit.job import Compiled
from vitbench.audit.model.profile import launched, profile
from vitbench.audit.model.time import failure, model, resources
from vitbench.audit.records import Row
from vitbench.audit.sass import execute, listing
from vitbench.audit.sass.graph import Graph, build_graph
from vitbench.audit.traffic import Traffic


@dataclass(frozen=True)
class Examined:
    """A launch's machine code, how often its blocks run, what its loads and stores move, and its row.

    What could not be found out is None.
    """

    compiled: Compiled
    executions: execute.Executions | None
    row: Row
    traffic: Traffic | None = None


def examine(launch: Launch, compiled: Compiled, arch: int, cache: Path, traffic: Traffic | None = None) -> Examined:
    """Count and model a launch; control flow that does not end is a row with status "error".

    Without traffic, bytes are those that load and store instructions can move, masked lanes included.

    Without machine code the row holds the resources alone, status "compiled".
    """
    if not compiled.sass:
        return Examined(compiled, None, resources(launch, compiled, arch))
    graph = build_graph(listing.parse(compiled.sass))
    try:
        executions = _executions(graph, launched(launch, compiled, arch), compiled, cache)
    except execute.RanAway as problem:
        return Examined(compiled, None, failure(launch, arch, compiled.triton, f"not counted: {problem}"))
    counted = profile(graph, executions, launch, compiled, arch)
    return Examined(compiled, executions, model(launch, compiled, counted, arch, traffic), traffic)


def _executions(graph: Graph, seen: execute.Launched, compiled: Compiled, cache: Path) -> execute.Executions:
    """Run the control flow, or read what it gave the last time that the same code ran with the same arguments."""
    shown = (source_fingerprint(), compiled.sass, sorted(seen.constants.items()), seen.grid, seen.num_warps)
    stored = cache / (hashlib.sha256(repr(shown).encode()).hexdigest() + ".counts.gz")
    if stored.exists():
        found = json.loads(gzip.decompress(stored.read_bytes()))
        active = {int(index): times for index, times in found["active"].items()}
        return execute.Executions(found["warps"], active, frozenset(found["guessed"]), found["sampled"])
    executions = execute.count(graph, seen)
    record = {**vars(executions), "guessed": sorted(executions.guessed)}
    cache.mkdir(parents=True, exist_ok=True)
    draft = stored.with_suffix(f".{os.getpid()}.part")
    draft.write_bytes(gzip.compress(json.dumps(record).encode(), 3))
    draft.replace(stored)
    return executions


@once
def source_fingerprint() -> str:
    """Fingerprint of this package: other code may count otherwise."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
