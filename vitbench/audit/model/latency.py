"""How many cycles a multiprocessor's answers take, per architecture, for the simulation.

Sources. [H]: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture", arXiv 2402.13499, and the
same authors' arXiv 2501.12084: latencies of an A100, an RTX 4090 and an H100 PCIe. [B]: Jarmusch et al., "Dissecting
the NVIDIA Blackwell Architecture with Microbenchmarks", arXiv 2507.10789: an RTX 5080. Their tables are given here from
memory: of the papers only the first pages could be read. [M]: markdewing/AI_kernels on GitHub, its folder latency at
commit ba553f4, read 2026-11-30: L1, L2 and memory by one program on an A100 (39, 210, 550 cycles), a 4090 (40, 296,
636), an H100 SXM (40, 291, 700), a 5090 (44, 360, 936), an RTX PRO 6000 (44, 352, 864), a B200 (40, 295, 860) and a
B300 (39, 295, 848).

[M] confirms L1 within 5 cycles and L2 within a fifth, and has memory 17 % (4090), 18 % (A100) and 46 % (H100) longer
than [H], probably since its chains of loads outrun what is kept of the translation of addresses. `Latency.scaled` by a
quarter spans all of it but Hopper's memory. Its B200 stands to its H100 as 1.01 to 1 in L2 and 1.23 to 1 in memory; the
model takes Hopper's figures for sm_100 and sm_103, since a mixture of both sources would say more than either.

Published by nobody, so assumptions, the same on every architecture: `special`, `shuffle`, `register`, `uniform`,
`constant`, `variable`, `read`, `barrier`, `matrix`, `bulk` and `start`; `Latency.scaled` shows their weight in a
result. Fixed latencies of arithmetic are no parameters: the compiler's stall counts hold them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Latency:
    """Cycles from issue to answer on an idle multiprocessor.

    Attributes:
        l1, shared, l2, memory: of a load that is served there.
        special: of MUFU, conversions and other functions of the special unit.
        shuffle: of SHFL, which passes through the shared memory's crossbar.
        register: of S2R and other reads of special registers; uniform: of R2UR.
        constant: of LDC and ULDC.
        variable: of what else answers through a scoreboard.
        read: until the sources of an instruction have been read, for those that hold a read barrier.
        barrier: from the last arrival at a barrier to the first instruction after it.
        matrix: what a warp group's or tensor memory's product takes beyond the cycles of its multiply-adds.
        bulk: what a bulk (TMA) copy takes beyond the latency of memory.
        start: from the end of a program to the first instruction of the next one in its place.
    """

    l1: float
    shared: float
    l2: float
    memory: float
    special: float = 22.0
    shuffle: float = 24.0
    register: float = 25.0
    uniform: float = 12.0
    constant: float = 30.0
    variable: float = 20.0
    read: float = 12.0
    barrier: float = 22.0
    matrix: float = 24.0
    bulk: float = 170.0
    start: float = 300.0

    def scaled(self, factor: float) -> Latency:
        """All of them longer or shorter."""
        return Latency(**{field.name: factor * getattr(self, field.name) for field in fields(self)})


_AMPERE = Latency(l1=37.9, shared=29.0, l2=261.5, memory=466.3)  # [H] A100
_ADA = Latency(l1=43.4, shared=30.1, l2=273.0, memory=541.5)  # [H] RTX 4090
_HOPPER = Latency(l1=40.7, shared=29.0, l2=263.0, memory=478.8)  # [H] H100 PCIe
_BLACKWELL = Latency(l1=40.0, shared=30.0, l2=358.0, memory=877.0)  # [B] RTX 5080; shared memory assumed

#: GA102 has the caches of Ada's predecessor and its memory: nobody's figures, taken over from the A100 and the 4090.
LATENCIES = {
    80: _AMPERE, 86: Latency(l1=37.9, shared=29.0, l2=261.5, memory=541.5), 89: _ADA, 90: _HOPPER, 100: _HOPPER,
    103: _HOPPER, 120: _BLACKWELL,
}  # fmt: skip
