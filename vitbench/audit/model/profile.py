"""Dynamic counts of one launch: block executions times the instructions in each block, by pipe and by kind."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from vitkernels import Launch

from vitbench.audit.job import INTEGERS, Compiled
from vitbench.audit.model import bulk
from vitbench.audit.sass import execute, listing, pipes
from vitbench.audit.sass.graph import Graph, Loop
from vitbench.audit.sass.integers import Value, float_bits
from vitbench.errors import InputError


@dataclass(frozen=True)
class LoopCount:
    """One loop: its depth, instructions in its own blocks, entries and trips per program, share of all issue slots."""

    header_address: int
    depth: int
    instructions: int
    trips: float
    issue_share: float
    blocks: frozenset[int]


def _tally() -> defaultdict[str, float]:
    return defaultdict(float)


@dataclass
class Profile:
    """Counts of a whole launch, in warp instructions unless another unit is named.

    `issued` and `by_name` count every instruction that takes an issue slot, guard or not; `special`, `cycles`, bytes
    and `widths` leave out those whose guard is known to be false.
    """

    graph: Graph
    executions: list[float]
    issued: float = 0.0
    by_name: defaultdict[str, float] = field(default_factory=_tally)
    special: float = 0.0
    cycles: defaultdict[str, float] = field(default_factory=_tally)
    matrix_multiply_adds: float = 0.0
    older_matrix: bool = False
    matrix_instruction: str = ""
    bypasses: bool = False  # copies to shared memory around the L1 cache
    load_bytes: float = 0.0
    store_bytes: float = 0.0
    widths: dict[int, float] = field(default_factory=dict)
    loops: list[LoopCount] = field(default_factory=list)
    narrowest_hot_load_bytes: int | None = None
    guessed: frozenset[int] = frozenset()
    sampled: bool = False

    @property
    def endless(self) -> list[int]:
        """Addresses of branches that were guessed and that a loop ends by: nobody knows how often it runs."""
        code, graph = self.graph.listing.instructions, self.graph
        last = {code[block.stop - 1].address: block for block in graph.blocks}
        loops = [(address, last[address], graph.loop_of(last[address].number)) for address in sorted(self.guessed)]
        return [address for address, block, loop in loops if loop and not loop.blocks.issuperset(block.successors)]


def constants(launch: Launch, compiled: Compiled, arch: int) -> dict[int, Value]:
    """Constant bank 0 as the kernel sees it, by word offset; pointers get distinct aligned addresses."""
    bank: dict[int, Value] = {}
    x, y, z = _grid(launch)
    launch_base = 0x360 if arch >= 100 else 0x0
    threads = compiled.num_warps * 32
    grid_base = launch_base + (0x10 if arch >= 100 else 0xC)
    bank.update(zip(range(launch_base, launch_base + 12, 4), (threads, 1, 1), strict=True))
    bank.update(zip(range(grid_base, grid_base + 12, 4), (x, y, z), strict=True))
    for position, (offset, size, name) in enumerate(compiled.parameters):
        value = launch.args.get(name)
        number: Value = None
        if isinstance(value, str) and value.startswith("*"):
            number = _address(position)
        elif isinstance(value, float):
            number = float_bits(value)
        elif isinstance(value, int):
            number = value
        if size < 4:
            _place_byte(bank, offset, number)
            continue
        for word in range(size // 4):
            bank[offset + 4 * word] = None if number is None else number >> 32 * word & 0xFFFFFFFF
    return bank


def _place_byte(bank: dict[int, Value], offset: int, number: Value) -> None:
    word = bank.get(offset & ~3, 0)
    unknown = word is None or number is None
    bank[offset & ~3] = None if unknown else (word or 0) | (number or 0) << 8 * (offset & 3)


def memory(launch: Launch, compiled: Compiled) -> dict[int, bytes]:
    """What the launch says of memory, by address.

    Raises: InputError for values behind what is no pointer to integers.
    """
    found = {}
    for name, values in launch.values.items():
        kind = str(launch.args.get(name))
        if kind not in INTEGERS:
            raise InputError(f"{launch.id}: values of {name!r} need a pointer to {' or '.join(INTEGERS)}, not {kind}")
        found[_base(compiled, name)] = np.asarray(values, INTEGERS[kind]).tobytes()
    return found


def _base(compiled: Compiled, name: str) -> int:
    return _address([known for _, _, known in compiled.parameters].index(name))


def _address(position: int) -> int:
    """Where a pointer points: far from all others."""
    return 0x7F00_0000_0000 + (position << 36)


def _grid(launch: Launch) -> tuple[int, int, int]:
    x, y, z = (*launch.grid, 1, 1)[:3]
    return x, y, z


def launched(launch: Launch, compiled: Compiled, arch: int) -> execute.Launched:
    """What the machine code of a launch sees when it runs."""
    seen = constants(launch, compiled, arch)
    return execute.Launched(seen, _grid(launch), compiled.num_warps, memory(launch, compiled))


def profile(graph: Graph, ran: execute.Executions, launch: Launch, compiled: Compiled, arch: int) -> Profile:
    """Count the instructions of a launch whose block executions are known."""
    result = Profile(graph, ran.warps, guessed=ran.guessed, sampled=ran.sampled)
    per_block = [0.0] * len(graph.blocks)
    matrix_work = _tally()
    copied = bulk.copy_bytes(graph)
    for block, times in zip(graph.blocks, ran.warps, strict=True):
        if not times:
            continue
        for i in graph.instructions(block.number):
            result.issued += times
            per_block[block.number] += times
            result.by_name[i.name] += times
            active = ran.active.get(i.index, 0.0) if i.guard and execute.watched(i) else times
            used = pipes.use(i, arch, tensor_tile(graph, i))
            _add(result, i, used, active)
            if i.name in bulk.LOADS:
                result.load_bytes += active / compiled.num_warps * copied
            elif i.name in bulk.STORES:
                result.store_bytes += active / compiled.num_warps * copied
            if pipes.is_matrix(i):
                matrix_work[i.name] += active * used.multiply_adds
    if matrix_work:
        result.matrix_instruction = max(matrix_work, key=lambda name: matrix_work[name])
    result.older_matrix = result.matrix_instruction == "HMMA"
    _loops(result, per_block, launch.programs * compiled.num_warps)
    return result


def _add(result: Profile, i: listing.Instruction, used: pipes.Use, active: float) -> None:
    """Charge the units that an instruction keeps busy whenever its guard holds."""
    result.cycles[used.pipe] += active * used.cycles
    result.matrix_multiply_adds += active * used.multiply_adds
    if used.pipe == "sfu":
        result.special += active if i.name == "MUFU" else 0.0
    around = i.name in bulk.LOADS or (i.name == "LDGSTS" and "BYPASS" in i.modifiers)
    result.bypasses = result.bypasses or (active > 0 and around)
    if i.name in bulk.LOADS or i.name in bulk.STORES:
        return
    if pipes.is_global_load(i):
        result.load_bytes += active * 32 * i.width_bytes
        result.widths[i.width_bytes] = result.widths.get(i.width_bytes, 0.0) + active
    elif pipes.is_global_store(i):
        result.store_bytes += active * 32 * i.width_bytes


def tensor_tile(graph: Graph, instruction: listing.Instruction) -> tuple[int, int, int] | None:
    """(M, N, K) of a tensor-memory matrix instruction, from the constant last moved to its descriptor register."""
    if not instruction.name.startswith("UTC") or not pipes.is_matrix(instruction):
        return None
    named = [o for o in instruction.operands if o.startswith("idesc[")]
    register = named[0][6:-1] if named else ""
    for earlier in reversed(graph.listing.instructions[: instruction.index]):
        if earlier.name == "UMOV" and earlier.operands[0] == register and earlier.operands[1].startswith("0x"):
            word = int(earlier.operands[1], 16)
            return (word >> 24 & 0x1F) << 4, (word >> 17 & 0x3F) << 3, 16
    return None


def _loops(result: Profile, per_block: list[float], warps: int) -> None:
    graph = result.graph
    hottest: tuple[float, Loop] | None = None
    for loop in graph.loops:
        own = [b for b in loop.blocks if graph.loop_of(b) is loop]
        issued = sum(per_block[b] for b in own)
        header = graph.blocks[loop.header]
        address = graph.listing.instructions[header.start].address
        size = sum(graph.blocks[b].stop - graph.blocks[b].start for b in own)
        trips = result.executions[loop.header] / warps if warps else 0.0
        if issued:
            result.loops.append(LoopCount(address, loop.depth, size, trips, issued / result.issued, loop.blocks))
        if issued and (hottest is None or issued > hottest[0]):
            hottest = (issued, loop)
    result.loops.sort(key=lambda found: -found.issue_share)
    scope = hottest[1].blocks if hottest else None
    result.narrowest_hot_load_bytes = _narrowest(result, scope) or _narrowest(result, None)


def _narrowest(result: Profile, scope: frozenset[int] | None) -> int | None:
    widths = [
        i.width_bytes if i.name != "UTMALDG" else 16
        for block in result.graph.blocks
        if result.executions[block.number] and (scope is None or block.number in scope)
        for i in result.graph.instructions(block.number)
        if pipes.is_global_load(i)
    ]
    return min(widths) if widths else None
