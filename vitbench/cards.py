"""GPUs that commands can speak of without having one: what their makers' data sheets say.

One table for the audit, for memory and for prediction. Rates are peaks, not what a kernel reaches. Figures are those of
the document that `source` names; where only a third party's listing of it could be read, `source` says so. Limits per
architecture: CUDA C++ Programming Guide 13, table of technical specifications per compute capability.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from vitbench.columns import Column
from vitbench.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor of an architecture holds."""

    warps: int
    programs: int
    fp32_lanes: int  # multiply-adds per clock
    shared_kib: int
    l1_kib: int  # shared memory included
    registers: int = 65536


LIMITS = {
    80: Limits(64, 32, 64, 164, 192),
    86: Limits(48, 16, 128, 100, 128),
    89: Limits(48, 24, 128, 100, 128),
    90: Limits(64, 32, 128, 228, 256),
    100: Limits(64, 32, 128, 228, 256),
    103: Limits(64, 32, 128, 228, 256),
    120: Limits(48, 24, 128, 100, 128),
}


@dataclass(frozen=True)
class Card:
    """One GPU on paper.

    Attributes:
        name: as people call it; `vitbench audit --card` takes it.
        device: part of what NVML and torch call it that no other card's name has.
        arch: 90 for sm_90.
        boost_ghz: the highest clock that the maker states.
        memory_gb, memory_gb_s: size in 10^9 bytes, as sold, and peak bandwidth in 10^9 bytes a second.
        l2_mib: second-level cache.
        fp16_tflops: peak of dense fp16 or bf16 matrix products that add up in fp32.
        power_w: the limit it is sold with.
        source: where the figures are from, and when they were read.
    """

    name: str
    device: str
    arch: int
    multiprocessors: int
    boost_ghz: float
    memory_gb: int
    memory_gb_s: float
    l2_mib: float
    fp16_tflops: float
    power_w: int
    source: str

    @property
    def usable_gib(self) -> float:
        """What CUDA calls the device's total memory, in 2^30 bytes: less than is sold."""
        return USABLE[self.name][0] if self.name in USABLE else round(self.memory_gb * _SHARE, 1)

    @property
    def usable_source(self) -> str:
        return USABLE[self.name][1] if self.name in USABLE else f"estimated: {_SHARE} GiB for each GB as sold"

    @property
    def limits(self) -> Limits:
        return LIMITS[self.arch]

    @property
    def matrix_multiply_adds(self) -> int:
        """Per clock and multiprocessor: the power of two that the peak rate stands for."""
        exact = self.fp16_tflops * 1e3 / (2 * self.multiprocessors * self.boost_ghz)
        return min((1 << power for power in range(6, 14)), key=lambda rate: abs(rate - exact) / rate)


_A100 = "NVIDIA A100 white paper and data sheet; read in third parties' listings, 2026-11-29"
_GA102 = "NVIDIA GA102 white paper 2.1; read in third parties' listings, 2026-11-29"
_ADA = "NVIDIA Ada white paper 2.01; read in third parties' listings, 2026-11-29"
_H100 = "NVIDIA H100 data sheet and white paper; read in third parties' listings, 2026-11-29"
_B200 = "NVIDIA HGX B200 data sheet; multiprocessors: Chips and Cheese, 2025-12-15, read 2026-11-29"
_GB202 = "NVIDIA RTX Blackwell white paper; read in third parties' listings, 2026-11-29"
_RECALLED = "from memory, not looked up: check before relying on it"

CARDS = (
    Card("A100 80GB", "A100-SXM4-80GB", 80, 108, 1.410, 80, 2039, 40, 312, 400, _A100),
    Card("A100 40GB", "A100-SXM4-40GB", 80, 108, 1.410, 40, 1555, 40, 312, 400, _A100),
    Card("A100 80GB PCIe", "A100 80GB PCIe", 80, 108, 1.410, 80, 1935, 40, 312, 300, _A100),
    Card("A100 40GB PCIe", "A100-PCIE-40GB", 80, 108, 1.410, 40, 1555, 40, 312, 250, _A100),
    Card("A10", "NVIDIA A10", 86, 72, 1.695, 24, 600, 6, 125, 150, f"NVIDIA A10 data sheet; {_GA102[7:]}"),
    Card("RTX 3090", "GeForce RTX 3090", 86, 82, 1.695, 24, 936, 6, 71, 350, _GA102),
    Card("RTX A6000", "RTX A6000", 86, 84, 1.800, 48, 768, 6, 154.8, 300, f"NVIDIA RTX A6000 data sheet, {_RECALLED}"),
    Card("RTX 4090", "GeForce RTX 4090", 89, 128, 2.520, 24, 1008, 72, 165.2, 450, _ADA),
    Card("RTX 4080", "GeForce RTX 4080", 89, 76, 2.505, 16, 716.8, 64, 97.5, 320, _ADA),
    Card("RTX 4060", "GeForce RTX 4060", 89, 24, 2.460, 8, 272, 24, 30.2, 115,
         "NVIDIA's product page; read in third parties' listings (v1olegrace/triton-kernel-lab), 2026-11-30"),
    Card("L4", "NVIDIA L4", 89, 58, 2.040, 24, 300, 48, 121, 72, f"NVIDIA L4 data sheet; {_ADA[7:]}"),
    Card("L40S", "NVIDIA L40S", 89, 142, 2.520, 48, 864, 96, 362, 350, f"NVIDIA L40S data sheet; {_ADA[7:]}"),
    Card("RTX 6000 Ada", "RTX 6000 Ada", 89, 142, 2.505, 48, 960, 96, 364.2, 300, f"NVIDIA data sheet, {_RECALLED}"),
    Card("H200", "NVIDIA H200", 90, 132, 1.980, 141, 4800, 50, 989.4, 700, f"NVIDIA H200 data sheet; {_H100[7:]}"),
    Card("H100 SXM", "H100 80GB HBM3", 90, 132, 1.980, 80, 3350, 50, 989.4, 700, _H100),
    Card("H100 PCIe", "H100 PCIe", 90, 114, 1.755, 80, 2039, 50, 756, 350, _H100),
    Card("B200", "NVIDIA B200", 100, 148, 1.965, 180, 8000, 126, 2250, 1000, _B200),
    Card("B300", "NVIDIA B300", 103, 148, 1.920, 288, 8000, 126, 2250, 1400, f"NVIDIA HGX B300 sheet, {_RECALLED}"),
    Card("RTX 5090", "GeForce RTX 5090", 120, 170, 2.407, 32, 1792, 96, 209.5, 575, _GB202),
    Card("RTX 5080", "GeForce RTX 5080", 120, 84, 2.617, 16, 960, 64, 112.6, 360, _GB202),
    Card("RTX PRO 6000", "RTX PRO 6000 Blackwell", 120, 188, 2.617, 96, 1792, 128, 503.8, 600,
         f"NVIDIA RTX PRO 6000 Workstation Edition data sheet; {_GB202[7:]}"),
    Card("RTX PRO 6000 Max-Q", "RTX PRO 6000 Blackwell Max-Q", 120, 188, 2.288, 96, 1792, 128, 440.4, 300,
         "technical.city (clock, 110.1 TFLOP/s fp32) and Fixstars 2025-09-04, read 2026-11-29; fp16 is 4 x fp32"),
)  # fmt: skip


#: GiB that CUDA says a card has, as torch prints it when memory runs out ("GPU 0 has a total capacity of ..."), from
#: public reports on GitHub.
USABLE = {
    "A100 80GB": (79.25, "HiDream-ai/VAREdit#6"),
    "A100 80GB PCIe": (79.25, "as A100 80GB"),
    "A100 40GB": (39.50, "TianheWu/CoSeR#10"),
    "A100 40GB PCIe": (39.50, "as A100 40GB"),
    "A10": (21.99, "zai-org/CogVLM#236"),
    "RTX 3090": (23.59, "bytedance/X-Portrait#7"),
    "RTX 4090": (23.64, "ali-vilab/VGen#104"),
    "L40S": (44.42, "stepfun-ai/Step-Video-T2V#8"),
    "RTX 6000 Ada": (44.43, "DINGYANB/MTVCrafter#21, with error correction on"),
    "H100 SXM": (79.11, "vllm-project/vllm#27508"),
    "H100 PCIe": (79.11, "as H100 SXM"),
    "RTX 5090": (31.36, "TrajectoryCrafter/TrajectoryCrafter#20"),
    "RTX PRO 6000": (94.97, "antirez/ds4#431"),
}
#: GiB for each GB as sold, where nothing is reported: below all but cards with error correction in GDDR memory.
_SHARE = 0.98


def find(name: str) -> Card:
    """The card that is called so, whatever the case, with or without its maker's name and SXM.

    Raises: InputError, with the names that come closest.
    """
    wanted = _plain(name)
    for card in CARDS:
        if wanted in (_plain(card.name), _plain(card.device)):
            return card
    known = {_plain(card.name): card.name for card in CARDS}
    kinds = [card for plain, card in known.items() if plain.startswith(wanted)]
    close = kinds or [known[match] for match in difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)]
    listed = "`--card list` and `vitbench memory --gpu list` name them"
    told = f"did you mean {' or '.join(close)}?" if close else listed
    raise InputError(f"no card is called {name!r}; {told}")


def of_device(device_name: str) -> Card | None:
    """The card of a device called as NVML or torch calls it ("NVIDIA H100 80GB HBM3"); None for others."""
    found = [card for card in CARDS if card.device in device_name]
    return max(found, key=lambda card: len(card.device)) if found else None


#: Words that people leave out: the maker's, and the form that a data-centre card has unless it is called PCIe.
_UNSAID = ("nvidia", "geforce", "tesla", "sxm", "sxm4", "sxm5")


def _plain(name: str) -> str:
    words = name.lower().replace("-", " ").split()
    return " ".join(word for word in words if word not in _UNSAID)


def memory_columns() -> list[Column]:
    """Each card's memory as sold, what CUDA says there is, and who reports that."""
    return [
        Column("card", [card.name for card in CARDS], "key"),
        Column("arch", [f"sm_{card.arch}" for card in CARDS], "word"),
        Column("GB sold", [card.memory_gb for card in CARDS]),
        Column("GiB usable", [card.usable_gib for card in CARDS], show="{:.2f}".format),
        Column("source of what is usable", [card.usable_source for card in CARDS], "text"),
    ]


def speed_columns() -> list[Column]:
    """What each card can do, then where its figures are from; TFLOP/s of fp16 matrix products, added up in fp32."""
    return [
        Column("card", [card.name for card in CARDS], "key"),
        Column("arch", [f"sm_{card.arch}" for card in CARDS], "word"),
        Column("SMs", [card.multiprocessors for card in CARDS]),
        Column("GHz", [card.boost_ghz for card in CARDS], show="{:.3f}".format),
        Column("GB", [card.memory_gb for card in CARDS]),
        Column("GB/s", [card.memory_gb_s for card in CARDS], show="{:.0f}".format),
        Column("L2 MiB", [card.l2_mib for card in CARDS], show="{:.0f}".format),
        Column("fp16 TFLOP/s", [card.fp16_tflops for card in CARDS], show="{:.1f}".format),
        Column("W", [card.power_w for card in CARDS]),
        Column("source", [card.source for card in CARDS], "text"),
    ]
