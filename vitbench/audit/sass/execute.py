"""How often each block of a kernel runs in a launch: the control flow is run, not guessed.

Trip counts are not matched to source loops: software pipelining, peeling and unrolling make that fragile. Instead the
instructions that branches depend on are executed for the launch's own argument values. When a branch depends on
something only memory or floating point decides, a fixed rule picks a side and the address is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vitbench.audit.sampling import spread
from vitbench.audit.sass import effects, operations, pipes
from vitbench.audit.sass.graph import Block, Graph, target
from vitbench.audit.sass.integers import Value
from vitbench.audit.sass.listing import Instruction, is_predicate
from vitbench.audit.sass.thread import Getter, Step, Thread, getter

MAX_PROGRAMS = 192
MIN_PROGRAMS = 8
MAX_STEPS = 120_000  # instructions run per launch: a few tenths of a second
MAX_BLOCKS = 4_000_000


_Who = tuple[int, int] | None  # (warp, lane), or None for a thread that stands for all


class RanAway(Exception):
    """A thread did not reach the end of the kernel within the step limit."""


@dataclass(frozen=True)
class Executions:
    """Block executions of a whole launch, in warps.

    `warps[b]` counts how many times a warp ran block b. `active[i]` counts, for watched instructions with a guard,
    how often the guard held (or could not be known: masks that differ between lanes count as held). `guessed` holds
    addresses of branches that depend on data. `sampled` says that not every program was run (spread ones were, and
    scaled).
    """

    warps: list[float]
    active: dict[int, float]
    guessed: frozenset[int]
    sampled: bool


@dataclass(frozen=True)
class Launched:
    """What a thread can see: constant bank words by offset, the grid, warps per program, and what is known of memory:
    bytes by the address that they begin at."""

    constants: Mapping[int, Value]
    grid: tuple[int, int, int]
    num_warps: int
    memory: Mapping[int, bytes] = field(default_factory=dict)


def _mentioned(graph: Graph, chosen: Sequence[bool]) -> set[str]:
    """Operands and instruction names of the chosen instructions."""
    code = graph.listing.instructions
    return {operand for i, used in zip(code, chosen, strict=True) if used for operand in (*i.operands, i.name)}


def watched(instruction: Instruction) -> bool:
    """Instructions whose guards are followed: those that keep a unit or a memory path busy when it holds."""
    return pipes.use(instruction, 0).pipe in ("sfu", "lsu", "matrix") and not pipes.never_runs(instruction)


def _recorder(index: int, guard: Getter) -> Step:
    def record(t: Thread) -> None:
        if guard(t) != 0:
            t.active[index] = t.active.get(index, 0) + 1
        else:
            t.skipped.append(index)

    return record


@dataclass
class _Block:
    steps: list[Step]
    kind: str
    guard: Getter | None
    taken: int | None
    after: int | None
    address: int


class Machine:
    """A kernel prepared for running: its control slice as closures, block by block."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        chosen = effects.control_slice(graph, watched)
        self.blocks = [self._prepare(block, chosen) for block in graph.blocks]
        self.reads = _mentioned(graph, chosen)
        self.controls = _mentioned(graph, effects.control_slice(graph, lambda _: False))
        self.inner = {block.number: graph.loop_of(block.number) for block in graph.blocks}
        self.dead_ends = self._dead_ends()

    def _prepare(self, block: Block, chosen: Sequence[bool]) -> _Block:
        code = self.graph.listing.instructions
        last = code[block.stop - 1]
        transfers = last.name in ("BRA", "JMP", "CALL", "RET", "EXIT", "BPT", "BRX", "KILL", "BREAK")
        body = range(block.start, block.stop - 1 if transfers else block.stop)
        steps: list[Step] = []
        for index in body:
            if code[index].guard and watched(code[index]):
                steps.append(_recorder(index, getter(code[index].guard)))
            if chosen[index]:
                steps.append(operations.step(code[index]))
        tests = [o for o in ([last.guard] if last.guard else []) + list(last.operands) if is_predicate(o)]
        goes_to = target(last, self.graph.listing) if transfers else None
        return _Block(
            steps=steps,
            kind=last.name if transfers else "",
            guard=_all_of([getter(test) for test in tests]) if transfers and tests else None,
            taken=None if goes_to is None or goes_to >= len(code) else self.graph.block_of[goes_to],
            after=block.number + 1 if block.number + 1 < len(self.graph.blocks) else None,
            address=last.address,
        )

    def _dead_ends(self) -> set[int]:
        """Blocks from which every path meets a trap: checks that never fire in a correct program."""
        code = self.graph.listing.instructions
        alive = {b.number for b in self.graph.blocks if code[b.stop - 1].name in ("EXIT", "RET")}
        alive -= {
            b.number for b in self.graph.blocks if any(i.name == "BPT" for i in self.graph.instructions(b.number))
        }
        changed = True
        while changed:
            changed = False
            for block in self.graph.blocks:
                trapped = code[block.stop - 1].name == "BPT"
                onward = block.successors[:1] if code[block.stop - 1].name == "CALL" else block.successors
                if block.number not in alive and not trapped and alive.intersection(onward):
                    alive.add(block.number)
                    changed = True
        return {b.number for b in self.graph.blocks} - alive

    def run_thread(self, thread: Thread, counts: list[int], guessed: set[int]) -> int:
        """Adds this thread's block executions to `counts`; returns how many instructions it took.

        Raises: RanAway past MAX_BLOCKS blocks.
        """
        calls: list[int] = []
        number: int | None = 0
        steps = 0
        for _ in range(MAX_BLOCKS):
            if number is None:
                return steps
            counts[number] += 1
            block = self.blocks[number]
            steps += len(block.steps) + 1
            for run in block.steps:
                run(thread)
            number = self._next(number, block, thread, calls, guessed)
        raise RanAway(f"no end after {MAX_BLOCKS} blocks: last branch at {self.blocks[number or 0].address:#x}")

    def path(self, thread: Thread) -> Iterator[tuple[int, list[int]]]:
        """The blocks that a thread runs, in order, each with the watched instructions in it whose guard did not hold.

        Raises: RanAway past MAX_BLOCKS blocks.
        """
        calls: list[int] = []
        guessed: set[int] = set()
        number: int | None = 0
        for _ in range(MAX_BLOCKS):
            if number is None:
                return
            block = self.blocks[number]
            thread.skipped = []
            for run in block.steps:
                run(thread)
            yield number, thread.skipped
            number = self._next(number, block, thread, calls, guessed)
        raise RanAway(f"no end after {MAX_BLOCKS} blocks: last branch at {self.blocks[number or 0].address:#x}")

    def special(self, place: tuple[int, int, int], who: _Who) -> dict[str, int]:
        """The special registers of a thread, without its index where it stands for all."""
        found = dict(zip(("SR_CTAID.X", "SR_CTAID.Y", "SR_CTAID.Z"), place, strict=True))
        found |= {"SR_TID.Y": 0, "SR_TID.Z": 0, "SR_CgaCtaId": 0, "SR_SWINHI": 0}
        if who is not None:
            found |= {"SR_TID.X": 32 * who[0] + who[1], "SR_LANEID": who[1]}
        return found

    def by_index(self, launched: Launched) -> bool:
        """Whether a thread's way through the first program depends on its index."""
        if not self.controls & {"SR_TID.X", "SR_LANEID", "ELECT"}:
            return False
        tally = _Tally(self, launched)
        tally.run((0, 0, 0), [None])
        return bool(tally.guessed)

    def _next(self, number: int, block: _Block, thread: Thread, calls: list[int], guessed: set[int]) -> int | None:
        if not block.kind:
            return block.after
        test: Value = 1 if block.guard is None else block.guard(thread)
        if test is None:
            test = self._certain(block)
            if test is None and block.kind == "EXIT" and "SR_TID.X" not in thread.special:
                # Threads that leave early do so by their index: the warp goes on for the others.
                test = 0
            if test is None:
                guessed.add(block.address)
                test = self._leave_loop(number, block)
        if not test:
            return block.after
        if block.kind in ("BRA", "JMP"):
            return block.taken
        if block.kind == "CALL" and block.taken is not None:
            if block.after is not None:
                calls.append(block.after)
            return block.taken
        if block.kind == "RET":
            return calls.pop() if calls else None
        return None

    def _certain(self, block: _Block) -> Value:
        """A side that is certain although the predicate is not: the other one is a trap."""
        if block.kind in ("BRA", "CALL", "JMP") and block.taken in self.dead_ends:
            return 0
        if block.after in self.dead_ends:
            return 1
        return None

    def _leave_loop(self, number: int, block: _Block) -> int:
        loop = self.inner[number]
        if loop is None:
            return 0
        goes = block.taken if block.kind in ("BRA", "JMP") else None
        return int(goes not in loop.blocks) if block.after in loop.blocks else 0


def _all_of(tests: list[Getter]) -> Getter:
    def test(t: Thread) -> Value:
        values = [get(t) for get in tests]
        return 0 if 0 in values else None if None in values else 1

    return test


def count(graph: Graph, launched: Launched, machine: Machine | None = None) -> Executions:
    """Runs the launch's programs, or as many spread over the grid as MAX_PROGRAMS and MAX_STEPS allow, and scales.

    One thread that does not know its index stands for all. Only where a branch turns out to depend on the index are
    lanes 0 and 31 of every warp run, and a block counts as often as the lane that ran it most.

    Raises: RanAway when a thread does not end.
    """
    machine = machine or Machine(graph)
    axes = [n if f"SR_CTAID.{axis}" in machine.reads else 1 for n, axis in zip(launched.grid, "XYZ", strict=True)]
    warps = launched.num_warps
    each: Sequence[_Who] = [(warp, lane) for warp in range(warps) for lane in (0, 31)]
    # Where the first program's branches depend on the index, those of a thread that stands for all need not be counted.
    for threads in [each] if machine.by_index(launched) else [[None], each]:
        tally, programs = _sample(machine, launched, axes, threads)
        if not (tally.guessed and machine.controls & {"SR_TID.X", "SR_LANEID", "ELECT"}):
            break
    scale = math.prod(launched.grid) / programs * (warps if threads == [None] else 1)
    return Executions(
        warps=[times * scale for times in tally.blocks],
        active={index: times * scale for index, times in tally.active.items()},
        guessed=frozenset(tally.guessed),
        sampled=math.prod(axes) > programs,
    )


def _sample(machine: Machine, launched: Launched, axes: Sequence[int], threads: Sequence[_Who]) -> tuple[_Tally, int]:
    """Counts over as many programs as the step limit allows, and how many those were."""
    steps = _Tally(machine, launched).run((0, 0, 0), threads)
    limit = max(MIN_PROGRAMS, min(MAX_PROGRAMS, MAX_STEPS // max(steps, 1)))
    tally = _Tally(machine, launched)
    programs = spread(axes, limit)
    for program in programs:
        tally.run(program, threads)
    return tally, len(programs)


class _Tally:
    """Sums of block and guard counts over the programs run so far."""

    def __init__(self, machine: Machine, launched: Launched) -> None:
        self.machine, self.launched = machine, launched
        self.blocks = [0] * len(machine.blocks)
        self.active: dict[int, int] = {}
        self.guessed: set[int] = set()

    def run(self, program: tuple[int, int, int], threads: Sequence[_Who]) -> int:
        """One program; returns the instructions run."""
        steps = 0
        per_warp: dict[int, list[tuple[list[int], dict[int, int]]]] = {}
        for who in threads:
            counts = [0] * len(self.blocks)
            thread = Thread(self.launched.constants, self.machine.special(program, who), self.launched.memory)
            steps += self.machine.run_thread(thread, counts, self.guessed)
            per_warp.setdefault(who[0] if who else 0, []).append((counts, thread.active))
        for lanes in per_warp.values():
            for block, executed in enumerate(zip(*(counts for counts, _ in lanes), strict=True)):
                self.blocks[block] += max(executed)
            for index in {index for _, active in lanes for index in active}:
                most = max(active.get(index, 0) for _, active in lanes)
                self.active[index] = self.active.get(index, 0) + most
        return steps
