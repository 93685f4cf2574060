"""Which registers an instruction writes and reads, and the part of a kernel that decides its branches."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from vitbench.audit.sass.graph import Graph
from vitbench.audit.sass.listing import Instruction, is_predicate, register_of

_ANY = re.compile(r"(?<![A-Za-z0-9_.])(U?R\d+|U?P\d+)(\.64)?\b")
_SLOT = re.compile(r"^\[R1(?:\+(0x[0-9a-f]+))?\]$")
_NO_DESTINATION = {
    "BRA", "EXIT", "RET", "CALL", "STG", "STS", "STL", "ST", "BAR", "NOP", "DEPBAR", "LDGDEPBAR", "LDGSTS", "RED",
    "MEMBAR", "FENCE", "WARPSYNC", "BSSY", "BSYNC", "NANOSLEEP", "BPT", "STSM", "UTMALDG", "UTMASTG", "UTCHMMA",
    "UTCQMMA", "UTCOMMA", "UTCBAR", "UTMACMDFLUSH", "UTMACCTL", "ERRBAR", "CCTL", "WARPGROUP", "KILL", "YIELD", "STTM",
    "UBLKCP", "UCGABAR_ARV", "UCGABAR_WAIT", "ARRIVES", "REDG", "REDS", "UTCCP", "BREAK", "DEPBAR_ALL",
}  # fmt: skip


def _writes_pair(instruction: Instruction) -> bool:
    return "WIDE" in instruction.modifiers or "64" in instruction.modifiers or instruction.name == "CS2R"


def _reads_pairs(instruction: Instruction) -> bool:
    """Whether a register source may stand for itself and the next one."""
    wide = not {"U64", "S64"}.isdisjoint(instruction.modifiers) and "SETP" in instruction.name
    return wide or _writes_pair(instruction) or (instruction.name == "IMAD" and "HI" in instruction.modifiers)


def _next(register: str) -> str:
    stem = register.rstrip("0123456789")
    if stem == register:
        return register
    return f"{stem}{int(register[len(stem) :]) + 1}"


# Instructions whose first operands are all predicates, sources too: how many of those predicates are results.
_TEST = {
    "ISETP": 2, "UISETP": 2, "FSETP": 2, "DSETP": 2, "HSETP2": 2, "PLOP3": 2, "UPLOP3": 2, "PSETP": 2, "UPSETP": 2,
    "FCHK": 1,
}  # fmt: skip


def _results(instruction: Instruction) -> int:
    """How many leading operands are results: predicates, one register, and predicates straight after it."""
    if instruction.name in _NO_DESTINATION:
        return 0
    if instruction.name in _TEST:
        return _TEST[instruction.name]
    operands = instruction.operands
    if instruction.name in ("VOTE", "VOTEU", "ELECT"):
        operands = operands[:-1]
    seen_register = False
    for position, operand in enumerate(operands):
        if is_predicate(operand):
            continue
        if seen_register or register_of(operand) is None:
            return position
        seen_register = True
    return len(operands)


def stack_slots(instruction: Instruction) -> list[str]:
    """The words of the local stack a spill or reload touches, as names beside the registers' ("stack+32").

    The stack pointer R1 is set once, so its constant offsets name slots; any other address gives none.
    """
    operand = instruction.operands[1 if instruction.name == "LDL" else 0]
    found = _SLOT.match(operand)
    if not found:
        return []
    first = int(found.group(1), 16) if found.group(1) else 0
    return [f"stack+{first + 4 * word}" for word in range(max(1, instruction.width_bytes // 4))]


def writes(instruction: Instruction) -> list[str]:
    """Registers, predicates and stack slots it sets, in operand order; a wide load sets all of its registers."""
    if instruction.name == "STL":
        return stack_slots(instruction)
    if instruction.name in ("R2P", "UR2UP"):
        return [f"{'U' if instruction.name == 'UR2UP' else ''}P{i}" for i in range(7)]
    found: list[str] = []
    for operand in instruction.operands[: _results(instruction)]:
        if is_predicate(operand):
            found.append(operand)
            continue
        found.append(register_of(operand) or "RZ")
        if instruction.name.startswith("LD") or instruction.name in ("ULDC", "ATOMG"):
            for _ in range(instruction.width_bytes // 4 - 1):
                found.append(_next(found[-1]))
        elif _writes_pair(instruction):
            found.append(_next(found[-1]))
    return [name for name in found if name[-1] not in "ZT"]


def reads(instruction: Instruction) -> set[str]:
    """Registers and predicates it may depend on, its guard included; pairs are taken whole."""
    names: set[str] = set(stack_slots(instruction)) if instruction.name == "LDL" else set()
    if instruction.name == "STL" and (register := register_of(instruction.operands[1])) is not None:
        for _ in range(max(1, instruction.width_bytes // 4)):
            names.add(register)
            register = _next(register)
    pair = _reads_pairs(instruction)
    sources = (
        instruction.operands if instruction.name in ("R2P", "UR2UP") else instruction.operands[_results(instruction) :]
    )
    text = instruction.guard.lstrip("!") + " " + " , ".join(sources)
    for match in _ANY.finditer(text):
        register = match.group(1)
        names.add(register)
        if "P" not in register and (pair or match.group(2)):
            names.add(_next(register))
    if instruction.name in ("P2R", "UP2UR"):
        mask = instruction.operands[-1]
        bits = int(mask, 16) if mask.startswith("0x") else 0x7F
        names.update(f"{'U' if instruction.name == 'UP2UR' else ''}P{i}" for i in range(7) if bits >> i & 1)
    return names


def control_slice(graph: Graph, watched: Callable[[Instruction], bool]) -> list[bool]:
    """For every instruction, whether a branch, or the guard of a watched instruction, may depend on its result.

    Branches, exits, calls and returns always belong.
    """
    return _slice(
        graph,
        lambda i: {i.guard.lstrip("!")} if i.guard and watched(i) else set(),
        {"BRA", "EXIT", "CALL", "RET", "BRX", "JMP", "BREAK"},
    )


def address_slice(graph: Graph, accesses: Callable[[Instruction], bool]) -> list[bool]:
    """For every instruction, whether the address in brackets of one of these accesses may depend on its result."""

    def needs(i: Instruction) -> set[str]:
        addresses = [operand for operand in i.operands if operand.startswith("[")] if accesses(i) else []
        return {match.group(1) for operand in addresses for match in _ANY.finditer(operand)}

    return _slice(graph, needs, set())


def _slice(graph: Graph, needs: Callable[[Instruction], set[str]], always: set[str]) -> list[bool]:
    """Backwards flow of the registers that are needed; an instruction that sets one of them belongs to the slice and
    its own sources become needed, as they do of instructions that always belong."""
    code = graph.listing.instructions
    sets, seeds, uses = [writes(i) for i in code], [needs(i) for i in code], cache(lambda index: reads(code[index]))
    chosen = [False] * len(code)
    needed_in: list[set[str]] = [set() for _ in graph.blocks]
    changed = True
    while changed:
        changed = False
        for block in reversed(graph.blocks):
            needed: set[str] = set()
            for successor in block.successors:
                needed |= needed_in[successor]
            for index in range(block.stop - 1, block.start - 1, -1):
                instruction = code[index]
                set_here = sets[index]
                if instruction.name in always or needed.intersection(set_here):
                    if not chosen[index]:
                        chosen[index] = changed = True
                    if not instruction.guard:
                        needed.difference_update(set_here)
                    needed |= uses(index)
                needed |= seeds[index]
            if needed != needed_in[block.number]:
                needed_in[block.number], changed = needed, True
    return chosen
