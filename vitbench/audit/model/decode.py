"""What each instruction of a kernel asks of a multiprocessor, as arrays that the simulation's inner loop reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from vitbench.audit.model import bulk
from vitbench.audit.model.chips import Chip
from vitbench.audit.model.latency import Latency
from vitbench.audit.model.profile import tensor_tile
from vitbench.audit.sass import pipes
from vitbench.audit.sass.graph import Graph
from vitbench.audit.sass.listing import Instruction

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


class Kind(IntEnum):
    """How the simulation treats an instruction; all but PIPE and NOTHING have a case of their own there."""

    PIPE = 0  # a unit of the scheduler's own, or none
    NOTHING = 1  # takes an issue slot and no more
    SHARED = 2
    LOAD = 3
    COPY = 4  # global to shared memory, asynchronously
    STORE = 5
    LOCAL = 6  # the stack, in the L1 cache
    ATOMIC = 7  # its old value comes back
    COPY_COMMIT = 8  # closes a group of copies
    COPY_WAIT = 9  # until at most `argument` groups are open
    BARRIER = 10  # arrives at barrier `argument` and waits; `group` warps meet there, 0 for all
    ARRIVE = 11  # arrives and goes on
    GROUP_PRODUCT = 12  # HGMMA; `argument` 1 closes a group of products
    GROUP_WAIT = 13  # until at most `argument` groups of products are open
    BULK = 14  # a TMA copy; `bytes` are all of it, `argument` 1 ends a phase
    TENSOR_PRODUCT = 15  # tcgen05
    TENSOR_COMMIT = 16  # its products are done: a phase ends
    PHASE_WAIT = 17  # until the next phase of copies or products has ended
    BULK_STORE = 18  # a TMA copy to memory; it belongs to a group of copies once it has read its source


#: Issued by one thread of a program, whichever of its warps come by.
BULK_KINDS = (Kind.BULK, Kind.BULK_STORE)


class Unit(IntEnum):
    """Units that each scheduler has for itself, LSU for the whole multiprocessor."""

    NONE = 0
    FP32 = 1
    ALU = 2
    SFU = 3
    MATRIX = 4
    UNIFORM = 5
    TENSOR_MEMORY = 6
    LSU = 7


_UNITS = {"fp32": Unit.FP32, "alu": Unit.ALU, "sfu": Unit.SFU, "uniform": Unit.UNIFORM, "matrix": Unit.MATRIX}
_REGISTER_READS = {"S2R", "S2UR", "CS2R"}
_CONSTANTS = {"LDC", "ULDC", "LDCU"}
_REGISTERS = re.compile(r"^x(\d+)$")


@dataclass(frozen=True)
class Code:
    """Arrays over the instructions of a kernel; latencies and cycles in cycles, `bytes` of a whole warp."""

    kind: Ints
    unit: Ints
    cycles: Floats
    latency: Floats
    stall: Floats
    write: Ints  # barriers, -1 for none
    read: Ints
    wait: Ints
    bytes: Floats
    argument: Ints
    group: Ints


def decode(graph: Graph, chip: Chip, latency: Latency, shared_cycles: Mapping[int, int]) -> Code:
    """The kernel's instructions as `Code` for one card.

    Args:
        shared_cycles: as `Trace` has them; other accesses of shared memory are taken to meet no conflict.
    """
    found = [_decoded(i, graph, chip, latency) for i in graph.listing.instructions]
    for index, cycles in shared_cycles.items():
        found[index] = replace(found[index], cycles=max(found[index].cycles, float(cycles)))
    copied, last = bulk.copy_bytes(graph), bulk.ends_phase(graph)
    found = [
        replace(f, bytes=copied, argument=int(i.index in last or i.name == "UTMAREDG")) if f.kind in BULK_KINDS else f
        for i, f in zip(graph.listing.instructions, found, strict=True)
    ]
    controls = [i.control for i in graph.listing.instructions]

    def whole(values: list[int]) -> Ints:
        return np.array(values, np.int32)

    return Code(
        kind=whole([f.kind for f in found]),
        unit=whole([f.unit for f in found]),
        cycles=np.array([f.cycles for f in found], np.float64),
        latency=np.array([f.latency for f in found], np.float64),
        stall=np.array([max(1, c.stall) for c in controls], np.float64),
        write=whole([-1 if c.write_barrier is None else c.write_barrier for c in controls]),
        read=whole([-1 if c.read_barrier is None else c.read_barrier for c in controls]),
        wait=whole([c.wait_mask for c in controls]),
        bytes=np.array([f.bytes for f in found], np.float64),
        argument=whole([f.argument for f in found]),
        group=whole([f.group for f in found]),
    )


@dataclass(frozen=True)
class _Decoded:
    kind: Kind
    unit: Unit = Unit.NONE
    cycles: float = 0.0
    latency: float = 0.0
    bytes: float = 0.0
    argument: int = 0
    group: int = 0


def _decoded(i: Instruction, graph: Graph, chip: Chip, latency: Latency) -> _Decoded:
    used = pipes.use(i, chip.arch, tensor_tile(graph, i))
    name = i.name
    if pipes.never_runs(i):
        return _Decoded(Kind.NOTHING)
    if pipes.is_matrix(i):
        return _product(i, used.multiply_adds, chip)
    if used.pipe == "lsu":
        return _memory(i, used.cycles, latency)
    if name in bulk.LOADS:
        return _Decoded(Kind.BULK, latency=latency.memory + latency.bulk)
    if name in bulk.STORES:
        return _Decoded(Kind.BULK_STORE)
    if name == "UTMACMDFLUSH":
        return _Decoded(Kind.COPY_COMMIT)
    if name.startswith("UTMA"):
        return _Decoded(Kind.NOTHING)
    if name in ("BAR", "WARPGROUP", "DEPBAR", "LDGDEPBAR", "SYNCS", "UTCBAR"):
        return _meeting(i)
    if name in _REGISTER_READS:
        return _Decoded(Kind.PIPE, latency=latency.register)
    if name == "R2UR":
        return _Decoded(Kind.PIPE, latency=latency.uniform)
    if name in _CONSTANTS:
        return _Decoded(Kind.PIPE, latency=latency.constant)
    unit = _UNITS.get(used.pipe, Unit.NONE)
    return _Decoded(Kind.PIPE, unit, used.cycles, latency.special if unit is Unit.SFU else latency.variable)


def _product(i: Instruction, multiply_adds: float, chip: Chip) -> _Decoded:
    """A matrix product, at the peak rate of the unit; what it sustains less is for the simulation to find."""
    per_scheduler = chip.matrix_multiply_adds / 4
    if i.name.startswith("UTC"):
        return _Decoded(Kind.TENSOR_PRODUCT, Unit.MATRIX, multiply_adds / chip.matrix_multiply_adds)
    if i.name in ("HGMMA", "IGMMA", "QGMMA"):
        cycles = max(multiply_adds / per_scheduler, _operand_bytes(i) / 128)
        return _Decoded(Kind.GROUP_PRODUCT, Unit.MATRIX, cycles, argument=int(any("gsb0" in o for o in i.operands)))
    return _Decoded(Kind.PIPE, Unit.MATRIX, multiply_adds / (per_scheduler * chip.older_matrix_share))


def _operand_bytes(i: Instruction) -> float:
    """What a warp group's product reads from shared memory: B once for all, A where no register holds it."""
    for modifier in i.modifiers:
        parts = modifier.split("x")
        if len(parts) == 3 and all(part.isdigit() for part in parts):
            m, n, k = (int(part) for part in parts)
            element = 4 if "TF32" in i.opcode else 1 if i.name != "HGMMA" else 2
            from_shared = not i.operands[1].startswith("R")
            return float(element * k * (n + (m if from_shared else 0)))
    return 0.0


def _memory(i: Instruction, cycles: float, latency: Latency) -> _Decoded:
    name, moved = i.name, 32.0 * i.width_bytes
    if name in ("LDTM", "STTM"):
        count = next((int(found.group(1)) for m in i.modifiers if (found := _REGISTERS.match(m))), 1)
        return _Decoded(Kind.PIPE, Unit.TENSOR_MEMORY, float(count), latency.shared)
    if name == "SHFL":
        return _Decoded(Kind.SHARED, Unit.LSU, cycles, latency.shuffle)
    if name in ("LDL", "STL"):
        return _Decoded(Kind.LOCAL, Unit.LSU, cycles, latency.l1, moved)
    if name == "LDGSTS":
        return _Decoded(Kind.COPY, Unit.LSU, cycles, 0.0, moved)
    if name in ("LDG", "LD"):
        return _Decoded(Kind.LOAD, Unit.LSU, cycles, 0.0, moved)
    if name in ("ATOMG", "ATOM"):
        return _Decoded(Kind.ATOMIC, Unit.LSU, cycles, 0.0, moved)
    if name in ("STG", "ST"):
        return _Decoded(Kind.STORE, Unit.LSU, cycles, 0.0, moved)
    if name in ("RED", "REDG"):
        return _Decoded(Kind.STORE, Unit.LSU, cycles, 0.0, moved, argument=1)
    return _Decoded(Kind.SHARED, Unit.LSU, cycles, latency.shared)


def _meeting(i: Instruction) -> _Decoded:
    """Where warps wait for one another or for what runs beside them."""
    if i.name == "BAR":
        numbers = [_number(o) for o in i.operands if not o.endswith("PT") and "P" not in o]
        known = [n if n is not None else 0 for n in numbers]
        identity, threads = known[0] if known else 0, known[1] if len(known) > 1 else 0
        kind = Kind.ARRIVE if "ARV" in i.modifiers else Kind.BARRIER
        return _Decoded(kind, argument=identity % 16, group=threads // 32)
    if i.name == "WARPGROUP":
        waits = "DEPBAR" in i.modifiers
        return _Decoded(Kind.GROUP_WAIT, argument=_number(i.operands[-1]) or 0) if waits else _Decoded(Kind.NOTHING)
    if i.name == "LDGDEPBAR":
        return _Decoded(Kind.COPY_COMMIT)
    if i.name == "DEPBAR":
        allowed = _number(i.operands[-1]) if len(i.operands) > 1 else None
        return _Decoded(Kind.COPY_WAIT, argument=allowed or 0)
    if i.name == "UTCBAR":
        return _Decoded(Kind.TENSOR_COMMIT)
    return _Decoded(Kind.PHASE_WAIT if "PHASECHK" in i.modifiers else Kind.NOTHING)


def _number(operand: str) -> int | None:
    return int(operand, 16) if operand.startswith("0x") else None
