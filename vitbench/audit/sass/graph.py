"""Basic blocks, control-flow edges and natural loops of a machine-code listing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vitbench.audit.sass.listing import Instruction, Listing

_TARGET = re.compile(r"`\(([^)]+)\)")
_ENDS_BLOCK = {"BRA", "EXIT", "RET", "CALL", "BRX", "JMP", "BPT", "KILL", "BREAK", "JMX", "BRXU"}


@dataclass
class Block:
    """Instructions [start, stop) that run together, and the blocks that may follow."""

    number: int
    start: int
    stop: int
    successors: list[int] = field(default_factory=list)


@dataclass
class Loop:
    """A natural loop: `header` dominates every block in `blocks`. `depth` is 1 for an outermost loop."""

    header: int
    blocks: frozenset[int]
    depth: int = 1
    parent: int | None = None


@dataclass
class Graph:
    """Control flow of one kernel. `block_of[i]` is the block that holds instruction i."""

    listing: Listing
    blocks: list[Block]
    block_of: list[int]
    loops: list[Loop]

    def instructions(self, block: int) -> tuple[Instruction, ...]:
        found = self.blocks[block]
        return self.listing.instructions[found.start : found.stop]

    def loop_of(self, block: int) -> Loop | None:
        """The innermost loop that holds a block, or None."""
        inside = [loop for loop in self.loops if block in loop.blocks]
        return max(inside, key=lambda loop: loop.depth) if inside else None


def target(instruction: Instruction, listing: Listing) -> int | None:
    """Index of the instruction a branch or call goes to; None when it is computed at run time."""
    for operand in instruction.operands:
        if found := _TARGET.search(operand):
            return listing.labels.get(found.group(1))
    for operand in reversed(instruction.operands):
        if operand.startswith("0x"):
            return listing.at(int(operand, 16))
    return None


def condition(instruction: Instruction) -> bool:
    """Whether a control transfer may fall through to the next instruction."""
    if instruction.guard:
        return True
    return any(re.match(r"^!?U?P\d+$", operand) for operand in instruction.operands)


def build_graph(listing: Listing) -> Graph:
    """Blocks, edges (a call is an edge to its target, a return one to every call's successor) and loops."""
    code = listing.instructions
    leaders = {0}
    for instruction in code:
        if instruction.name in _ENDS_BLOCK:
            leaders.add(instruction.index + 1)
            goes_to = target(instruction, listing)
            if goes_to is not None and instruction.name in ("BRA", "CALL", "JMP"):
                leaders.add(goes_to)
    leaders.update(index for index in listing.labels.values() if index < len(code))
    starts = sorted(index for index in leaders if index < len(code))
    blocks = [
        Block(number, start, stop)
        for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(code)], strict=True))
    ]
    block_of = [0] * len(code)
    for block in blocks:
        block_of[block.start : block.stop] = [block.number] * (block.stop - block.start)
    after_calls = [b.number + 1 for b in blocks if code[b.stop - 1].name == "CALL" and b.number + 1 < len(blocks)]
    for block in blocks:
        last = code[block.stop - 1]
        falls = block.number + 1 < len(blocks)
        if last.name in ("BRA", "JMP", "CALL"):
            goes_to = target(last, listing)
            if goes_to is not None and goes_to < len(code):
                block.successors.append(block_of[goes_to])
            falls = falls and (condition(last) or last.name == "CALL")
        elif last.name == "RET":
            block.successors.extend(after_calls)
            falls = falls and condition(last)
        elif last.name in _ENDS_BLOCK:
            falls = falls and condition(last)
        if falls and block.number + 1 not in block.successors:
            block.successors.append(block.number + 1)
    return Graph(listing, blocks, block_of, _loops(blocks))


def reachable(blocks: list[Block]) -> set[int]:
    """Blocks that control can reach from the entry."""
    found, pending = set(), [0]
    while pending:
        number = pending.pop()
        if number not in found:
            found.add(number)
            pending.extend(blocks[number].successors)
    return found


def _dominators(blocks: list[Block]) -> list[set[int]]:
    everything = set(range(len(blocks)))
    live = reachable(blocks)
    predecessors: list[list[int]] = [[] for _ in blocks]
    for block in blocks:
        for successor in block.successors:
            if block.number in live:
                predecessors[successor].append(block.number)
    found = [set(everything) for _ in blocks]
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for number in range(1, len(blocks)):
            before = [found[p] for p in predecessors[number]]
            new = (set.intersection(*before) if before else set()) | {number}
            if new != found[number]:
                found[number], changed = new, True
    return found


def _loops(blocks: list[Block]) -> list[Loop]:
    dominators = _dominators(blocks)
    predecessors: list[list[int]] = [[] for _ in blocks]
    for block in blocks:
        for successor in block.successors:
            predecessors[successor].append(block.number)
    bodies: dict[int, set[int]] = {}
    live = reachable(blocks)
    for block in blocks:
        if block.number not in live:
            continue
        for header in block.successors:
            if header not in dominators[block.number]:
                continue
            body = bodies.setdefault(header, {header})
            pending = [block.number]
            while pending:
                number = pending.pop()
                if number not in body and number in live:
                    body.add(number)
                    pending.extend(predecessors[number])
    loops = [Loop(header, frozenset(body)) for header, body in sorted(bodies.items())]
    for loop in loops:
        around = [other for other in loops if other is not loop and loop.blocks < other.blocks]
        loop.depth = 1 + len(around)
        if around:
            loop.parent = max(around, key=lambda other: -len(other.blocks)).header
    return loops
