"""How often each block of a kernel runs in a launch: the control flow is run, not guessed.

Trip counts are not matched to source loops: software pipelining, peeling and unrolling make that fragile. Instead the
instructions that branches depend on are executed for the launch's own argument values. When a branch depends on
something only memory or floating point decides, a fixed rule picks a side and the address is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitbench.audit import cfg, effects, operations
from vitbench.audit.integers import Value
from vitbench.audit.machine import Getter, Step, Thread, getter
from vitbench.audit.sass import is_predicate

MAX_PROGRAMS = 192
MAX_BLOCKS = 4_000_000


class RanAway(Exception):
    """A thread did not reach the end of the kernel within the step limit."""


@dataclass(frozen=True)
class Executions:
    """Block executions of a whole launch, in warps.

    `warps[b]` counts how many times a warp ran block b. `guessed` holds addresses of branches that depend on data.
    `sampled` says that not every program was run (evenly spaced ones were, and scaled).
    """

    warps: list[float]
    guessed: frozenset[int]
    sampled: bool


@dataclass(frozen=True)
class Launched:
    """What a thread can see: constant bank words by offset, the grid, and warps per program."""

    constants: Mapping[int, Value]
    grid: tuple[int, int, int]
    num_warps: int


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

    def __init__(self, graph: cfg.Graph) -> None:
        self.graph = graph
        chosen = effects.control_slice(graph)
        code = graph.listing.instructions
        self.blocks = [self._prepare(block, chosen) for block in graph.blocks]
        self.reads = {
            operand for i, used in zip(code, chosen, strict=True) if used for operand in (*i.operands, i.name)
        }
        self.inner = {block.number: graph.loop_of(block.number) for block in graph.blocks}
        self.dead_ends = self._dead_ends()

    def _prepare(self, block: cfg.Block, chosen: Sequence[bool]) -> _Block:
        code = self.graph.listing.instructions
        last = code[block.stop - 1]
        transfers = last.name in ("BRA", "JMP", "CALL", "RET", "EXIT", "BPT", "BRX", "KILL", "BREAK")
        body = range(block.start, block.stop - 1 if transfers else block.stop)
        steps = [operations.step(code[index]) for index in body if chosen[index]]
        tests = [o for o in ([last.guard] if last.guard else []) + list(last.operands) if is_predicate(o)]
        goes_to = cfg.target(last, self.graph.listing) if transfers else None
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
            b.number
            for b in self.graph.blocks
            if any(i.name == "BPT" for i in self.graph.instructions(b.number))
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

    def run_thread(self, thread: Thread, counts: list[int], guessed: set[int]) -> None:
        """Adds this thread's block executions to `counts`.

        Raises: RanAway past MAX_BLOCKS blocks.
        """
        calls: list[int] = []
        number: int | None = 0
        for _ in range(MAX_BLOCKS):
            if number is None:
                return
            counts[number] += 1
            block = self.blocks[number]
            for run in block.steps:
                run(thread)
            number = self._next(number, block, thread, calls, guessed)
        raise RanAway(f"no end after {MAX_BLOCKS} blocks: last branch at {self.blocks[number or 0].address:#x}")

    def _next(self, number: int, block: _Block, thread: Thread, calls: list[int], guessed: set[int]) -> int | None:
        if not block.kind:
            return block.after
        test: Value = 1 if block.guard is None else block.guard(thread)
        if test is None:
            test = self._guess(number, block)
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

    def _guess(self, number: int, block: _Block) -> Value:
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


def count(graph: cfg.Graph, launched: Launched) -> Executions:
    """Runs the launch's programs (at most MAX_PROGRAMS distinct ones, evenly spaced) and scales to the whole grid.

    Within a warp, lanes 0, 1 and 31 are run and a block counts as often as the lane that ran it most.

    Raises: RanAway when a thread does not end.
    """
    machine = Machine(graph)
    programs = _programs(launched.grid, machine.reads)
    total = [0] * len(graph.blocks)
    guessed: set[int] = set()
    lanes, warps = (0,), 1
    if machine.reads & {"SR_TID.X", "SR_LANEID", "ELECT"}:
        lanes, warps = (0, 1, 31), launched.num_warps
    for x, y, z in programs:
        for warp in range(warps):
            per_lane = []
            for lane in lanes:
                special = {
                    "SR_CTAID.X": x, "SR_CTAID.Y": y, "SR_CTAID.Z": z, "SR_TID.X": 32 * warp + lane, "SR_TID.Y": 0,
                    "SR_TID.Z": 0, "SR_LANEID": lane, "SR_CgaCtaId": 0, "SR_SWINHI": 0,
                }  # fmt: skip
                counts = [0] * len(graph.blocks)
                machine.run_thread(Thread(launched.constants, special), counts, guessed)
                per_lane.append(counts)
            for block, executed in enumerate(zip(*per_lane, strict=True)):
                total[block] += max(executed)
    grid = launched.grid
    scale = grid[0] * grid[1] * grid[2] / len(programs) * launched.num_warps / warps
    relevant = [n for n, axis in zip(grid, "XYZ", strict=True) if f"SR_CTAID.{axis}" in machine.reads]
    distinct = 1
    for extent in relevant:
        distinct *= extent
    return Executions([t * scale for t in total], frozenset(guessed), distinct > len(programs))


def _programs(grid: tuple[int, int, int], reads: set[str]) -> list[tuple[int, int, int]]:
    extents = [n if f"SR_CTAID.{axis}" in reads else 1 for n, axis in zip(grid, "XYZ", strict=True)]
    distinct = extents[0] * extents[1] * extents[2]
    chosen = range(distinct)
    picks = list(chosen)
    if distinct > MAX_PROGRAMS:
        picks = sorted({round(k * (distinct - 1) / (MAX_PROGRAMS - 1)) for k in range(MAX_PROGRAMS)})
    return [(p % extents[0], p // extents[0] % extents[1], p // extents[0] // extents[1]) for p in picks]
