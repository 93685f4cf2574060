"""The planned scale, simulated: `python -m vitbench.cluster.simulate [--nodes N --cases N ...] [--merge DIR]`.

Real cases are divided by the code that divides every run. Then time is simulated: nodes take shards, the longest first,
as SLURM does; cases take other than they were predicted to; nodes fail and come back, and a shard goes on on the next
free node from its journal, without the case that it was at. With --merge the journals that this leaves are written as
shards write them, and `vitbench merge` makes one CSV of them, timed and weighed.

Exit code 1 when a bound is passed: a makespan LONGER than the least that is possible, MERGE_S of the processor, so
that a busy machine does not count, MERGE_GIB.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import itertools
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitbench import selection
from vitbench.bench import sweep
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case, Grid, expand
from vitbench.cluster import folder as folders
from vitbench.cluster import shards
from vitbench.ops.names import IMPLS
from vitbench.process import python_environment
from vitbench.results.row import TABLE, Environment, Found, Speed

LONGER, MERGE_S, MERGE_GIB = 0.15, 60.0, 4.0
#: Seconds from a job's start to its first case, and until a node that failed is back.
STARTING_S, REPAIR_S = 60.0, 3600.0
#: How far predictions are off, as standard deviations of the logarithm: of a model as a whole, and of a case.
OFF_MODEL, OFF_CASE = 0.4, 0.2


@dataclass
class Simulated:
    """How a run went, in seconds; `attempts` are a shard's (node, first case, end of cases), for every shard."""

    makespan: float
    least: float
    failures: int
    lost: float
    attempts: list[list[tuple[int, int, int]]] = field(repr=False)

    @property
    def over(self) -> float:
        """How much longer than the least that is possible, as a fraction."""
        return self.makespan / self.least - 1


def some_cases(count: int) -> list[Case]:
    """So many cases of a plan over every model.

    Raises: ValueError when the grid has fewer.
    """
    models = selection.match("all")
    base = len(models) * len(IMPLS) * len(selection.MODES) * len(selection.DTYPES) * 8
    factors = [f"x{0.5 + step / 8:g}" for step in range(math.ceil(1.5 * count / base))]
    cases = expand(
        Grid(models, IMPLS, selection.MODES, selection.DTYPES, ["nchw"], factors, [2**n for n in range(8)], "cuda")
    )
    if len(cases) < count:
        raise ValueError(f"the grid has {len(cases)} cases, not {count}")
    step = len(cases) / count
    return [cases[int(number * step)] for number in range(count)]


def taken(cases: Sequence[Case], options: SweepOptions, seed: int) -> dict[Case, float]:
    """Seconds that cases take in truth, beside those predicted."""
    random = np.random.default_rng(seed)
    models = {name: math.exp(random.normal(0, OFF_MODEL)) for name in dict.fromkeys(case.model for case in cases)}
    off = np.exp(random.normal(0, OFF_CASE, len(cases)))
    predicted = shards.seconds(options)
    return {
        case: min(predicted(case) * models[case.model] * off[n], options.time_limit) for n, case in enumerate(cases)
    }


def simulate(
    divided: Sequence[Sequence[Case]], seconds: dict[Case, float], nodes: int, per_hour: float, seed: int
) -> Simulated:
    """Runs shards on nodes of which each fails with a probability `per_hour`; events in the order of their time."""
    random = np.random.default_rng(seed)
    ends = [np.cumsum([seconds[case] for case in shard]) for shard in divided]
    mean = 3600.0 / -math.log1p(-per_hour) if per_hour else math.inf
    free = [(0.0, node) for node in range(nodes)]
    fails = random.exponential(mean, nodes) if per_hour else np.full(nodes, math.inf)
    waiting = [(number, 0.0) for number in range(len(divided))]  # shards by their place in the queue, and since when
    heapq.heapify(waiting)
    begun = [0] * len(divided)
    attempts: list[list[tuple[int, int, int]]] = [[] for _ in divided]
    back = itertools.count(len(divided))
    place_of = {number: number for number in range(len(divided))}
    makespan = lost = 0.0
    failures = 0
    while waiting:
        at, node = heapq.heappop(free)
        place, since = heapq.heappop(waiting)
        shard, start = place_of[place], max(at, since)
        while fails[node] <= start:  # it failed while it had nothing to do
            start = max(start, fails[node] + REPAIR_S)
            fails[node] += REPAIR_S + random.exponential(mean)
        first = begun[shard]
        done_before = float(ends[shard][first - 1]) if first else 0.0
        end = start + STARTING_S + float(ends[shard][-1]) - done_before
        if end <= fails[node]:
            attempts[shard].append((node, first, len(ends[shard])))
            makespan = max(makespan, end)
            heapq.heappush(free, (end, node))
            continue
        measured = max(0.0, fails[node] - start - STARTING_S)
        begun[shard] = int(np.searchsorted(ends[shard], done_before + measured, side="right"))
        attempts[shard].append((node, first, begun[shard]))
        kept = (float(ends[shard][begun[shard] - 1]) if begun[shard] else 0.0) - done_before
        lost += fails[node] - start - max(0.0, kept)
        failures += 1
        again = next(back)
        place_of[again] = shard
        heapq.heappush(waiting, (again, float(fails[node])))
        heapq.heappush(free, (float(fails[node]) + REPAIR_S, node))
        fails[node] += REPAIR_S + random.exponential(mean)
    longest = max(seconds.values())
    return Simulated(makespan, max(sum(seconds.values()) / nodes, longest), failures, lost, attempts)


def write_journals(
    run: folders.Run, divided: Sequence[Sequence[Case]], attempts: Sequence[Sequence[tuple[int, int, int]]]
) -> None:
    """The rows that shards have added on the nodes that they were on, as their sweeps would have written them."""
    place = {name: TABLE.header.index(name) for name in TABLE.header}
    own = [place[name] for name in ("case", "model", "impl", "mode", "dtype", "resolution", "batch", "device_uuid")]
    for shard, cases, tried in zip(run.shards, divided, attempts, strict=True):
        for node, first, end in tried:
            if first == end:
                continue
            where = Environment(device_name="NVIDIA H200", device_uuid=f"GPU-{node}", torch="2.13.0", driver="600")
            speed = Speed(img_per_s=1.0, latency_ms_p50=1000.0, samples=100)
            example = sweep.row_of(cases[first], Found(speed=speed), where, run.options.setup, "2026-01-01T00:00:00")
            cells = list(TABLE.texts(example).values())
            with shard.rows_on(example).open("w", encoding="utf-8", newline="") as file:
                file.write(TABLE.header_line)
                writer = csv.writer(file, lineterminator="\n")
                for case in cases[first:end]:
                    size = case.id.rsplit("/", 3)[1]
                    mine = (case.id, case.model, case.impl, case.mode, case.dtype, size, case.batch, f"GPU-{node}")
                    for index, value in zip(own, mine, strict=True):
                        cells[index] = str(value)
                    writer.writerow(cells)


def time_merge(run: folders.Run, out: Path) -> tuple[float, float, float]:
    """Seconds, seconds of the processor and GiB at most of `vitbench merge` as a process of its own.

    Raises: RuntimeError when it fails.
    """
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-P", "-m", "vitbench", "merge", str(run.folder), "--out", str(out)]
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"vitbench merge: {done.stdout}{done.stderr}")
    print(done.stdout.strip())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, processor, after.ru_maxrss / 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vitbench.cluster.simulate", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--shards-per-node", type=int, default=8)
    parser.add_argument("--failures", type=float, default=0.01, help="probability that a node fails within an hour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", type=Path, metavar="DIR", help="also write the journals below DIR, and merge them")
    given = parser.parse_args(arguments)
    options = SweepOptions()
    start = time.monotonic()
    cases = some_cases(given.cases)
    planned = time.monotonic()
    divided = shards.divide(cases, given.shards_per_node * given.nodes, shards.seconds(options))
    ready = time.monotonic()
    print(
        f"{len(cases):,} cases planned in {planned - start:.1f} s, {len(divided):,} shards in {ready - planned:.1f} s"
    )
    found = simulate(divided, taken(cases, options, given.seed), given.nodes, given.failures, given.seed)
    print(
        f"{given.nodes:,} nodes, {found.failures} failed; makespan {found.makespan / 3600:.2f} h, at least possible "
        f"{found.least / 3600:.2f} h: {found.over:+.1%}; {found.lost / 3600:.1f} node hours lost to failures"
    )
    failed = found.over > LONGER
    if given.merge:
        given.merge.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=given.merge) as inside:
            places = {case: number for number, case in enumerate(cases)}
            run = folders.create(Path(inside) / "run", divided, places, options, "slurm")
            write_journals(run, divided, found.attempts)
            seconds, processor, gib = time_merge(run, Path(inside) / "merged.csv")
            size = (Path(inside) / "merged.csv").stat().st_size / 2**20
            print(
                f"merged {len(cases):,} rows, {size:,.0f} MiB, in {seconds:.1f} s, {processor:.1f} s of the processor, "
                f"with {gib:.2f} GiB at most"
            )
            failed |= processor > MERGE_S or gib > MERGE_GIB
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["Simulated", "simulate", "some_cases", "taken", "write_journals"]
