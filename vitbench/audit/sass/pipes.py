"""Which unit of the multiprocessor an instruction occupies, and for how long.

Cycles are per warp instruction on one of the four schedulers' own units; for `lsu`, whose unit the four share, they
are cycles of the whole multiprocessor. Rates are those of the throughput table of NVIDIA's CUDA C++ Programming Guide
(arithmetic instructions per clock and multiprocessor, compute capability 8.0, 9.0, 10.0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vitbench.audit.sass.listing import Instruction

PIPES = ("sfu", "matrix", "lsu", "fp32", "alu", "uniform", "control")
_SFU = {"MUFU", "I2F", "F2I", "F2F", "FRND", "POPC", "FLO", "BREV", "UFLO", "UPOPC"}
_FP32 = {"FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2", "FHADD", "FHFMA", "FSWZADD", "FMUL32I", "FADD32I"}
_HALF = {"HFMA2", "HADD2", "HMUL2", "HFMA2_MMA"}
_MATRIX = {"HMMA", "IMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA", "BMMA", "QMMA", "OMMA"}
_SHARED = {"LDS", "STS", "LDSM", "STSM", "ATOMS", "REDS"}
_GLOBAL = {"LDG", "STG", "LD", "ST", "ATOMG", "ATOM", "RED", "REDG", "LDGSTS", "LDL", "STL"}
_BULK = {"UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED", "UTMAPF", "UTMACCTL", "UTMACMDFLUSH"}
_CONTROL = {
    "BRA", "EXIT", "RET", "CALL", "BAR", "BSSY", "BSYNC", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "NOP", "MEMBAR", "FENCE",
    "SYNCS", "ERRBAR", "CCTL", "NANOSLEEP", "YIELD", "WARPGROUP", "ARRIVES", "BPT", "BREAK", "KILL", "BRX", "JMP",
    "UTCBAR", "UTCATOMSWS", "CGAERRBAR", "UCGABAR_ARV", "UCGABAR_WAIT", "VOTE", "VOTEU", "ELECT", "R2UR", "S2R",
    "S2UR", "CS2R", "LDC", "LDCU", "ULDC", "BMOV", "PREEXIT", "ACQBULK", "UVIRTCOUNT", "USETMAXREG", "LEPC",
}  # fmt: skip
_TILE = re.compile(r"^(\d+)x(\d+)x(\d+)$")
_HMMA_TILES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4), "16832": (16, 8, 32), "884": (8, 8, 4)}


@dataclass(frozen=True)
class Use:
    """The pipe an instruction occupies, the cycles it does so, and the multiply-adds of a matrix instruction."""

    pipe: str
    cycles: float
    multiply_adds: float = 0.0


def is_matrix(instruction: Instruction) -> bool:
    return instruction.name in _MATRIX or (instruction.name.startswith("UTC") and instruction.name.endswith("MMA"))


def is_global_load(instruction: Instruction) -> bool:
    return instruction.name in ("LDG", "LD", "LDGSTS", "UTMALDG") and not never_runs(instruction)


def is_global_store(instruction: Instruction) -> bool:
    return instruction.name in ("STG", "ST", "UTMASTG", "RED", "REDG", "ATOMG", "ATOM")


def never_runs(instruction: Instruction) -> bool:
    """Guarded by a predicate that is always false: the compiler's padding, which still takes an issue slot."""
    return instruction.guard in ("!PT", "!UPT")


def use(instruction: Instruction, arch: int, tile: tuple[int, int, int] | None = None) -> Use:
    """Pipe and cycles of an instruction on sm_<arch>; `tile` is (M, N, K) of a tensor-memory matrix instruction."""
    name = instruction.name
    if never_runs(instruction):
        return Use("control", 1)
    if is_matrix(instruction):
        return Use("matrix", 0, _multiply_adds(instruction, tile))
    if name in _SFU:
        # A packed half-precision special function gives two results in the time of two.
        return Use("sfu", 16 if "F16x2" in instruction.modifiers or "64H" in instruction.modifiers else 8)
    if name == "SHFL" or name in ("REDUX", "CREDUX"):
        return Use("lsu" if name == "SHFL" else "alu", 1 if name == "SHFL" else 8)
    if name in _SHARED or name in _GLOBAL:
        return Use("lsu", max(1.0, _bytes(instruction) * 32 / 128))
    if name in ("LDTM", "STTM"):
        return Use("lsu", 1)
    if name in _BULK:
        return Use("control", 1)
    if name in _CONTROL:
        return Use("control", 1)
    if name in _FP32:
        return Use("fp32", 2 if arch == 80 or name.endswith("2") else 1)
    if name in _HALF:
        return Use("fp32", 2 if arch == 80 and any("BF16" in m for m in instruction.modifiers) else 1)
    if name == "IMAD":
        # Integer multiply-adds go down half of the fp32 lanes.
        return Use("fp32", 2)
    if name.startswith("U"):
        return Use("uniform", 2)
    return Use("alu", 2)


def _bytes(instruction: Instruction) -> float:
    if instruction.name in ("LDSM", "STSM"):
        count = next((int(m) for m in reversed(instruction.modifiers) if m in ("2", "4")), 1)
        return 4.0 * count
    return instruction.width_bytes


def _multiply_adds(instruction: Instruction, tile: tuple[int, int, int] | None) -> float:
    """Multiply-adds of one warp's share, scaled to what a bf16 instruction of the same duration does."""
    for modifier in instruction.modifiers:
        if found := _TILE.match(modifier):
            m, n, k = (int(g) for g in found.groups())
            # The four warps of a warp group issue it together.
            return m * n * _as_bf16(k, instruction) / 4
        if modifier in _HMMA_TILES:
            m, n, k = _HMMA_TILES[modifier]
            return m * n * _as_bf16(k, instruction)
    if tile is not None:
        return float(tile[0] * tile[1] * tile[2])
    return 0.0


def _as_bf16(k: int, instruction: Instruction) -> float:
    text = instruction.opcode
    if "TF32" in text:
        return 2.0 * k
    if instruction.name in ("IMMA", "IGMMA", "QGMMA", "QMMA") or ".S8" in text or "E4M3" in text or "E5M2" in text:
        return k / 2
    return float(k)
