"""The time of a launch: one multiprocessor with its share of the card, simulated from the machine code.

What is simulated: the programs that are resident at once and those that follow them; four schedulers, oldest warp
first; the stall counts, six barriers and wait masks that the compiler wrote into each instruction; units and the
load/store queue; bank conflicts of shared memory, where a warp's addresses can be followed; loads that the L1 cache, L2
or memory answers after a latency and at a rate; groups of asynchronous copies and products, barriers of all and of some
warps, bulk copies and tensor-memory products with the phases that end them; atomics as stores that occupy L2 longer,
and one after another where they meet at one address. The busiest multiprocessor decides, so that tails count.

Bytes are those of `vitbench.audit.traffic`, spread evenly over the loads: which of them hit is taken in turn, not
followed. What it cannot see: clocks that power limits, throttling, the instruction cache, conflicts of registers, the
distance to a slice of L2, which phase a wait is for where copies and products share a kernel (the oldest one), several
launches at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from vitkernels import Launch

from vitbench.audit.job import Compiled
from vitbench.audit.model.chips import Chip, occupancy
from vitbench.audit.model.decode import BULK_KINDS, Code, Kind, decode
from vitbench.audit.model.latency import LATENCIES, Latency
from vitbench.audit.sass.graph import Graph
from vitbench.audit.sass.trace import Trace

INTERVAL = 0.25  # by which latencies are shortened and lengthened
_INSTRUCTIONS = 1_200_000  # simulated, where fewer programs than all tell the rate of the rest
_ROUNDS = 3
_L2_BYTES_A_CYCLE = 64.0  # into one multiprocessor, however idle the others are
#: An L2 slice adds one sector in the time of two stores: an assumption.
_ATOMIC_FACTOR = 2.0
#: Atomics on one address follow one another, one a clock since Kepler (NVIDIA's white paper on the GK110).
_MEETING_CYCLES = 1.0


@dataclass(frozen=True)
class Moved:
    """Bytes of a whole launch between L2 and the multiprocessors, and those that the elements of its loads ask for;
    `meeting` are the atomic operations on the element that most of them are on."""

    loaded: float
    stored: float
    asked: float
    meeting: float = 0.0


@dataclass(frozen=True)
class Times:
    """Of a launch on one card, without what launching it costs; low and high: least and most of that and of the same
    with latencies 25 % shorter and longer. `stalls` are the shares of all warp cycles by reason."""

    us: float
    low_us: float
    high_us: float
    stalls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Simulated:
    """A launch on one card.

    Attributes:
        issued_per_cycle: instructions that the multiprocessor issued a cycle, four at most.
        lost: [instructions, reasons of `engine.REASONS`], warp cycles by what the next instruction waited for.
        first_path, first_issued: what the first warp of the first program runs, as in `Trace.paths`, and the cycles in
            which it was issued.
    """

    times: Times
    issued_per_cycle: float
    lost: npt.NDArray[np.float64]
    first_path: npt.NDArray[np.int32]
    first_issued: npt.NDArray[np.float64]

    @property
    def eligible_per_cycle(self) -> float:
        """Warps of one scheduler that could issue in a cycle, selected or not, on an average."""
        shares = self.shares
        ready = shares["selected"] + shares["not selected"]
        return self.issued_per_cycle / 4 * ready / shares["selected"]

    @property
    def shares(self) -> dict[str, float]:
        """Of all cycles that warps spent, those by each reason, the largest first."""
        return dict(sorted(self.times.stalls.items(), key=lambda item: -item[1]))

    def waited(self, instruction: int) -> tuple[float, str]:
        """The share of all warp cycles that were spent before an instruction, and the reason for most of them."""
        from vitbench.audit.model.engine import REASONS

        row = self.lost[instruction]
        return float(row.sum() / max(self.lost.sum(), 1.0)), REASONS[int(row.argmax())]


def simulate(graph: Graph, traced: Trace, launch: Launch, compiled: Compiled, chip: Chip, amounts: Moved) -> Simulated:
    """Simulates a launch whose warps were traced.

    Raises: ImportError without numba; ValueError when the launch does not fit on a multiprocessor.
    """
    from vitbench.audit.model.engine import REASONS

    fits = occupancy(
        chip, compiled.registers, compiled.shared_bytes, compiled.num_warps, compiled.tensor_memory_columns
    )
    if not fits.programs:
        raise ValueError(f"the launch does not fit on a multiprocessor of the {chip.name}: too much {fits.limit}")
    usual = LATENCIES[chip.arch]
    middle, low, high = (
        _Run(graph, traced, launch, chip, fits.programs, latency, amounts)
        for latency in (usual, usual.scaled(1 - INTERVAL), usual.scaled(1 + INTERVAL))
    )
    # Other latencies are another order of events, which now and then is the better one.
    each = [middle.us, low.us, high.us]
    by_reason = middle.lost.sum(0) / max(middle.lost.sum(), 1.0)
    stalls = dict(zip(REASONS, (float(share) for share in by_reason), strict=True))
    times = Times(middle.us, min(each), max(each), stalls)
    return Simulated(times, middle.issued_per_cycle, middle.lost, *middle.first)


class _Run:
    """One run of the engine, and its time scaled to all programs."""

    def __init__(
        self, graph: Graph, traced: Trace, launch: Launch, chip: Chip, fitting: int, latency: Latency, amounts: Moved
    ) -> None:
        from vitbench.audit.model import engine

        code = decode(graph, chip, latency, traced.shared_cycles)
        each = -(-launch.programs // chip.multiprocessors)
        resident = min(fitting, each)
        lengths = np.array([len(path) for path in traced.paths], np.int64)
        per_program = float(lengths[traced.warps].sum(1).mean())
        total = _programs(each, resident, per_program)
        # The busiest multiprocessor has more than its share of the programs, and of the card's rates what they need.
        share = each / launch.programs
        l2_rate = min(_L2_BYTES_A_CYCLE, chip.l2_bytes_per_us * share / (chip.clock_ghz * 1e3))
        memory_rate = min(_L2_BYTES_A_CYCLE, chip.dram_bytes_per_us * share / (chip.clock_ghz * 1e3))
        spread = _Spread(code, traced, launch, amounts)
        ends, arrived, issued, lost, when = engine.simulate(
            code.kind, code.unit, code.cycles, code.latency, code.stall, code.write, code.read, code.wait, code.bytes,
            code.argument, code.group,
            np.concatenate(traced.paths), np.cumsum(lengths) - lengths, lengths,
            traced.warps, _leads(traced.warps), traced.warps.shape[1], resident, total,
            latency.l1, latency.l2, latency.memory, latency.read, latency.barrier, latency.matrix, latency.start,
            l2_rate, memory_rate, spread.l1_share, spread.memory_share, spread.loaded_per_byte,
            spread.copied_per_byte, spread.stored_per_byte, _ATOMIC_FACTOR,
        )  # fmt: skip
        cycles = float(arrived)
        if each > total:
            steady = total > resident
            rate = (total - resident) / (ends[-1] - ends[resident - 1]) if steady else resident / ends[-1]
            cycles += (each - total) / float(rate)
        self.us = max(cycles / traced.cut, amounts.meeting * _MEETING_CYCLES) / (chip.clock_ghz * 1e3)
        self.issued_per_cycle = issued / float(ends[-1])
        self.lost = lost
        self.first = traced.paths[traced.warps[0, 0]], when


def _programs(each: int, resident: int, length: float) -> int:
    """How many programs of one multiprocessor to simulate: all, or a few rounds of those that run at once."""
    if each * length <= _INSTRUCTIONS:
        return each
    rounds = max(1, min(_ROUNDS, int(_INSTRUCTIONS / (resident * length))))
    return min(each, rounds * resident)


def _leads(warps: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which warps are the first of their program on their path."""
    found = np.zeros(warps.shape, np.bool_)
    for row, paths in enumerate(warps):
        _, first = np.unique(paths, return_index=True)
        found[row, first] = True
    return found


class _Spread:
    """How the bytes of a launch spread over its instructions."""

    def __init__(self, code: Code, traced: Trace, launch: Launch, amounts: Moved) -> None:
        def moved(*kinds: Kind) -> float:
            """Bytes that instructions of these kinds can move in all programs."""
            chosen = np.where(np.isin(code.kind, kinds), code.bytes, 0.0)
            once = np.where(np.isin(code.kind, BULK_KINDS), chosen, 0.0)  # by one warp of those on a path
            by_path, once_by_path = (
                np.array([amounts[path[path >= 0]].sum() for path in traced.paths]) for amounts in (chosen - once, once)
            )
            leads = np.where(_leads(traced.warps), once_by_path[traced.warps], 0.0)
            return float((by_path[traced.warps] + leads).sum(1).mean()) / traced.cut * launch.programs

        loaded, stored = amounts.loaded, amounts.stored
        loads, copies = moved(Kind.LOAD), moved(Kind.COPY, Kind.BULK)
        stores = moved(Kind.STORE, Kind.ATOMIC, Kind.BULK_STORE)
        per_byte = loaded / (loads + copies) if loads + copies else 0.0
        self.l1_share = max(0.0, 1 - loaded / amounts.asked) if amounts.asked else 0.0
        self.copied_per_byte = per_byte
        self.loaded_per_byte = per_byte / max(1 - self.l1_share, 1e-3)
        self.stored_per_byte = stored / stores if stores else 0.0
        read = (launch.moved_bytes or launch.bytes) - stored
        self.memory_share = min(1.0, max(0.0, read / loaded)) if loaded else 0.0
