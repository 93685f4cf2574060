"""What warps execute, instruction by instruction: the control flow of a few programs, followed and written down.

One thread stands for all of its warp, and for all warps unless a branch depends on the thread's index; then the lane of
0 and 31 that goes the longer way stands for its warp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vitbench.audit.sampling import spread
from vitbench.audit.sass.banks import Banks
from vitbench.audit.sass.execute import Launched, Machine
from vitbench.audit.sass.graph import Graph
from vitbench.audit.sass.thread import Thread

PROGRAMS = 8
MAX_LENGTH = 600_000  # instructions of a program's warps together; longer traces are cut


@dataclass(frozen=True)
class Trace:
    """Traces of a few programs that stand for all of a launch.

    Attributes:
        paths: distinct traces of a warp. An entry is the index of an instruction, or -1 - index where its guard did
            not hold.
        warps: [programs, num_warps], which path each warp takes.
        cut: the share of the longest path that was kept; 1.0 unless MAX_LENGTH cut it.
        shared_cycles: by instruction, how long shared memory is busy with an access, where its addresses are known.
    """

    paths: list[npt.NDArray[np.int32]]
    warps: npt.NDArray[np.int32]
    cut: float = 1.0
    shared_cycles: Mapping[int, int] = field(default_factory=dict)


def trace(graph: Graph, launched: Launched, machine: Machine | None = None) -> Trace:
    """Follows up to PROGRAMS programs spread over the grid.

    Raises: RanAway when a thread does not end.
    """
    machine = machine or Machine(graph)
    places = spread(list(launched.grid), PROGRAMS)
    by_index = machine.by_index(launched)
    known: dict[bytes, int] = {}
    paths: list[npt.NDArray[np.int32]] = []
    rows = []
    longest = 0
    for place in places:
        row = []
        for warp in range(launched.num_warps) if by_index else range(1):
            lanes = [(warp, lane) for lane in (0, 31)] if by_index else [None]
            path = max((_follow(machine, launched, place, lane) for lane in lanes), key=len)
            longest = max(longest, len(path))
            path = path[: MAX_LENGTH // launched.num_warps]
            key = path.tobytes()
            if key not in known:
                known[key] = len(paths)
                paths.append(path)
            row.append(known[key])
        rows.append(row if by_index else row * launched.num_warps)
    kept = max(len(path) for path in paths)
    banks, shared_cycles = Banks(machine.graph), dict[int, int]()
    for number in dict.fromkeys(rows[0]):
        warp = rows[0].index(number)
        threads = [_thread(machine, launched, places[0], (warp, lane)) for lane in range(32)]
        shared_cycles = banks.cycles(paths[number], threads) | shared_cycles
    return Trace(paths, np.array(rows, np.int32), kept / longest if longest else 1.0, shared_cycles)


def _thread(machine: Machine, launched: Launched, place: tuple[int, int, int], who: tuple[int, int] | None) -> Thread:
    return Thread(launched.constants, machine.special(place, who), launched.memory)


def _follow(
    machine: Machine, launched: Launched, place: tuple[int, int, int], who: tuple[int, int] | None
) -> npt.NDArray[np.int32]:
    thread = _thread(machine, launched, place, who)
    ranges = [np.arange(block.start, block.stop, dtype=np.int32) for block in machine.graph.blocks]
    parts = []
    for number, skipped in machine.path(thread):
        part = ranges[number]
        if skipped:
            part = part.copy()
            at = np.array(skipped) - part[0]
            part[at] = -1 - part[at]
        parts.append(part)
    return np.concatenate(parts)
