"""How much a bulk (TMA) copy moves: its tile is known to the descriptor, not to the instruction.

Before its copies a program tells their barrier how many bytes will arrive (SYNCS.ARRIVE.TRANS64), a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitbench.audit.sass import operations
from vitbench.audit.sass.graph import Graph
from vitbench.audit.sass.listing import Instruction
from vitbench.audit.sass.thread import Thread, getter

LOADS = {"UTMALDG", "UBLKCP"}
STORES = {"UTMASTG", "UTMAREDG"}
_UNTOLD = 4096.0  # of a copy whose barrier was told no constant: only its share among other copies depends on it


def announces(i: Instruction) -> bool:
    """Whether it tells a barrier of bytes to come."""
    return i.name == "SYNCS" and {"ARRIVE", "TRANS64"} <= set(i.modifiers) and "A1T0" not in i.modifiers


def copy_bytes(graph: Graph) -> float:
    """Of one bulk copy on an average: all bytes announced over all copies, as they stand in the code."""
    code = graph.listing.instructions
    copies = sum(i.name in LOADS for i in code)
    told = [value for i in code if announces(i) and (value := _constant(code, i))]
    return sum(told) / copies if told and copies else _UNTOLD


def _constant(code: Sequence[Instruction], i: Instruction) -> int | None:
    """What the last operand was set to in straight line above; None where that is no constant."""
    register = i.operands[-1]
    for earlier in reversed(code[: i.index]):
        if register in earlier.operands[:1]:
            thread = Thread({}, {})
            operations.step(replace(earlier, guard=""))(thread)
            return getter(register)(thread)
    return None


def ends_phase(graph: Graph) -> set[int]:
    """Indices of the copies that are the last of those announced together: with them a phase of the barrier ends."""
    code = graph.listing.instructions
    last: dict[int, int] = {}
    group = 0
    for i in code:
        group += announces(i) or i.name in ("BRA", "EXIT")
        if i.name in LOADS:
            last[group] = i.index
    return set(last.values())
