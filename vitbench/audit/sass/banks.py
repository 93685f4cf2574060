"""Bank conflicts of shared memory, from the addresses of a warp's 32 lanes.

What addresses are computed by is run once for every lane, each instruction when the warp first comes to it: in later
turns of a loop all lanes have moved on by the same, which conflicts do not depend on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitbench.audit.sass import operations
from vitbench.audit.sass.effects import address_slice
from vitbench.audit.sass.graph import Graph
from vitbench.audit.sass.listing import Instruction
from vitbench.audit.sass.thread import Getter, Thread, getter

_ACCESSES = {"LDS", "STS", "LDSM", "STSM"}
_LANES = 32
_BANKS = 32
_TERM = re.compile(r"^(U?R\d+|U?RZ)(?:\.X(\d+))?$")


def accesses(instruction: Instruction) -> bool:
    """Whether it reads or writes shared memory at addresses of its lanes."""
    return instruction.name in _ACCESSES and instruction.guard not in ("!PT", "!UPT")


class Banks:
    """A kernel prepared for finding the conflicts of its accesses."""

    def __init__(self, graph: Graph) -> None:
        code = graph.listing.instructions
        chosen = address_slice(graph, accesses)
        self.steps = [operations.step(i) if used else None for i, used in zip(code, chosen, strict=True)]
        self.addresses = {i.index: _address(i) for i in code if accesses(i)}
        self.code = code

    def cycles(self, path: npt.NDArray[np.int32], lanes: Sequence[Thread]) -> dict[int, int]:
        """Of every access on a warp's path whose addresses are known, how long shared memory is busy with it."""
        if not self.addresses:
            return {}
        met, first = np.unique(np.where(path < 0, -1 - path, path), return_index=True)
        found = {}
        for index in met[np.argsort(first)].tolist():
            if (address := self.addresses.get(index)) is not None:
                known = [address(lane) for lane in lanes]
                if None not in known:
                    found[index] = wavefronts([a for a in known if a is not None], self.code[index])
            if (step := self.steps[index]) is not None:
                for lane in lanes:
                    step(lane)
        return found


def wavefronts(addresses: Sequence[int], access: Instruction) -> int:
    """Turns that shared memory takes: a turn serves 128 bytes and each of the 32 banks once.

    Args:
        addresses: of all lanes; of those that move matrices (LDSM, STSM), eight lanes tell the rows of each.
    """
    width = access.width_bytes
    if access.name in ("LDSM", "STSM"):
        matrices = next((int(m) for m in reversed(access.modifiers) if m in ("2", "4")), 1)
        addresses, width = addresses[: 8 * matrices], 16
    together = min(_LANES, _LANES * 4 // width)
    return sum(_turns(addresses[k : k + together], width) for k in range(0, len(addresses), together))


def _turns(addresses: Sequence[int], width: int) -> int:
    words = {address // 4 + k for address in addresses for k in range(max(1, width // 4))}
    return max(Counter(word % _BANKS for word in words).values())


def _address(access: Instruction) -> Getter:
    """Reads the address of an access: the sum of its terms in brackets."""
    operand = next(o for o in access.operands if o.startswith("["))
    terms = [_term(text) for text in operand[1:-1].split("+")]

    def read(t: Thread) -> int | None:
        total = 0
        for value, factor in terms:
            part = value(t)
            if part is None:
                return None
            total += part * factor
        return total & 0xFFFFFFFF

    return read


def _term(text: str) -> tuple[Getter, int]:
    found = _TERM.match(text)
    return (getter(found[1]), int(found[2] or 1)) if found else (getter(text), 1)
