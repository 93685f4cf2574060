"""How many cycles a multiprocessor's answers take, per architecture, for the simulation.

Sources of what the model takes. [H]: Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture",
arXiv 2402.13499: an A100, an RTX 4090 and an H100 PCIe. [B]: Jarmusch et al., "Dissecting the NVIDIA Blackwell
Architecture with Microbenchmarks", arXiv 2507.10789: an RTX 5080. Only the first pages of both could be read; the
A100's, the 4090's, and L2 and memory of the 5080 were found quoted alike elsewhere, the H100 PCIe's not.

Measured by others, read 2026-11-30, in cycles for L1, L2, memory. [R]: RRZE-HPC/gpu-benches on GitHub, gpu-latency,
commit 1038c5d, one warp that hops through ever larger buffers: A100 33, 205, 552 (L2's far half 413); A40 33, 250,
556; GH200 32, 280, 688; L40 34, 274, 625. [M]: markdewing/AI_kernels, latency, commit ba553f4: A100 39, 210, 550; 4090
40, 296, 636; H100 SXM 40, 291, 700; 5090 44, 360, 936; RTX PRO 6000 44, 352, 864; B200 40, 295, 860; B300 39, 295,
848. [T]: caps-tum/mt4g, sample_results, commit 4cc5566, H100 SXM: L1 38, L2 222, shared memory 30. [A]: Abdelkhalik et
al., arXiv 2208.11174, A100: L1 33, L2 200. [G]: lblommesteyn/3080lab, README, an RTX 3080's instructions: shared
memory 23, SHFL 26, MUFU 17. [U]: Huerta et al., "Analyzing Modern NVIDIA GPU cores", arXiv 2503.20481, table 2, of
Ampere: shared memory 24, LDC 29; sources are read after 9 cycles (shared load), 11 (load), 12 (shared store), 14
(store). [S]: accel-sim's configurations of an A100 and an H100: special unit 23. [A] and [U] were read as other people
quote them.

========== ======================== ==================================================================================
parameter  taken                    beside it
========== ======================== ==================================================================================
l1         37.9 to 43.4 [H], 40 [B] 32 to 34 [R], 33 [A], 38 [T], 39 to 44 [M]
shared     29 to 30.1 [H]           30 [T]; 23 [G], 24 [U]
l2         261.5 to 273 [H],        A100 205 [R], 210 [M], 200 [A] in its near half; Hopper 280 [R], 291 [M], 222 [T];
           358 [B]                  Ada 274 [R], 296 [M]; Blackwell 295 (B200), 360 (5090) [M]
memory     466 to 542 [H], 877 [B]  15 to 46 % longer [R], [M], as chains outrun what is kept of address translation
special    22, assumed              17 [G], 23 [S]
shuffle    24, assumed              26 [G]
constant   30, assumed              29 [U]
read       12, assumed              9 to 14 [U]
========== ======================== ==================================================================================

`Latency.scaled` by a quarter spans all of these but the memory of Hopper and of the B200: sm_100 and sm_103 take over
Hopper's figures, since a mixture of sources would say more than any of them. Where a source differs, nothing was
changed: the published kernel times, which judge the model, may not choose between them. Published by nobody, so
assumptions, the same on every architecture: `register`, `uniform`, `variable`, `barrier`, `matrix`, `bulk` and
`start`; `Latency.scaled` shows their weight in a result. Fixed latencies of arithmetic are no parameters: the
compiler's stall counts hold them.
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

#: GA102: taken over from the A100 and the 4090; an A40 of [R] has L2 at 250 and memory at 556.
LATENCIES = {
    80: _AMPERE, 86: Latency(l1=37.9, shared=29.0, l2=261.5, memory=541.5), 89: _ADA, 90: _HOPPER, 100: _HOPPER,
    103: _HOPPER, 120: _BLACKWELL,
}  # fmt: skip
