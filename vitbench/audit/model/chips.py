"""The rates that a card sustains, for the model of its time, and how many programs fit on a multiprocessor.

Figures on paper are in `vitbench.cards`. What a card sustains of them: H200 and H100 (SXM): copy (4.3 TB/s of 4.8; 3.0
of 3.35) and bf16 matrix rates (790 and 798 TFLOP/s of 989) as reported of one card each, not measured by this project;
the H200's L2 is about 6 TB/s. The H100's clock, L2 and share for HMMA are taken over from the H200, whose processor it
shares, and nobody checked them. All others: their peaks times the shares the H200 is reported to reach (0.90 and 0.80);
L2 scaled by multiprocessors and clock, on cards with GDDR memory 16 bytes a clock and multiprocessor (an RTX 4090 is
reported at about 5 TB/s).

Fitted to published kernel times, and to no others of them (marked "fitted" in `vitbench/audit/truth/published.csv`):
what a launch adds, to one short kernel on an A100, an H100 and an RTX 3090 each; the A100's memory rate (1.71 TB/s of
2.04), to the longest layer norm on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitbench import cards
from vitbench.cards import Card
from vitbench.errors import InputError


@dataclass(frozen=True)
class Chip:
    """Rates of one card. Bytes per microsecond are MB/s: 4.3 TB/s is 4.3e6 bytes/us."""

    name: str
    arch: int
    multiprocessors: int
    clock_ghz: float
    dram_bytes_per_us: float
    l2_bytes_per_us: float
    matrix_flops_per_us: float
    matrix_multiply_adds: int  # per clock and multiprocessor, at the peak
    launch_us: float  # what a launch adds to the time between two events around it
    older_matrix_share: float  # of that rate, for HMMA where a newer matrix instruction exists
    fp32_lanes: int  # multiply-adds per clock and multiprocessor
    shared_bytes: int  # per multiprocessor
    l1_bytes: int  # per multiprocessor, shared memory included
    max_warps: int = 64
    registers: int = 65536
    max_programs: int = 32
    tensor_memory_columns: int = 512

    def scheduler_cycles_us(self, cycles: float) -> float:
        """Microseconds when cycles of per-scheduler units are spread over the whole card."""
        return cycles / (4 * self.multiprocessors * self.clock_ghz * 1e3)

    def sm_cycles_us(self, cycles: float) -> float:
        """Microseconds when cycles of a unit that a multiprocessor has once are spread over the whole card."""
        return cycles / (self.multiprocessors * self.clock_ghz * 1e3)


#: What is reported of a card, in the place of shares of its peaks: clock in GHz, bytes/us from memory and L2, flops/us.
_REPORTED: dict[str, dict[str, float]] = {
    "A100 80GB": {"clock": 1.410, "memory": 1.708e6, "l2": 3.9e6, "matrix": 250e6},
    "H200": {"clock": 1.755, "memory": 4.3e6, "l2": 6.0e6, "matrix": 790e6},
    "H100 SXM": {"clock": 1.755, "memory": 3.0e6, "l2": 6.0e6, "matrix": 798e6},
    "B200": {"clock": 1.850, "memory": 7.2e6, "l2": 7.1e6, "matrix": 1800e6},
}
#: What a launch adds between two events, by architecture: fitted, see the docstring; others take over Hopper's.
_LAUNCH_US = {80: 7.9, 86: 3.9, 90: 6.4}
_OLDER_SHARE = {90: 0.62, 100: 0.31, 103: 0.31}
_STACKED_MEMORY = (80, 90, 100, 103)  # HBM


def _chip(card: Card) -> Chip:
    """What a card sustains."""
    known = _REPORTED.get(card.name, {})
    clock = known.get("clock", card.boost_ghz)
    per_clock = 6.0e6 / (132 * 1755) if card.arch in _STACKED_MEMORY else 16.0
    limits = card.limits
    return Chip(
        name=card.name,
        arch=card.arch,
        multiprocessors=card.multiprocessors,
        clock_ghz=clock,
        dram_bytes_per_us=known.get("memory", 0.90 * card.memory_gb_s * 1e3),
        l2_bytes_per_us=known.get("l2", per_clock * card.multiprocessors * clock * 1e3),
        matrix_flops_per_us=known.get("matrix", 0.80 * card.fp16_tflops * 1e6),
        matrix_multiply_adds=card.matrix_multiply_adds,
        launch_us=_LAUNCH_US.get(card.arch, _LAUNCH_US[90]),
        older_matrix_share=_OLDER_SHARE.get(card.arch, 1.0),
        fp32_lanes=limits.fp32_lanes,
        shared_bytes=limits.shared_kib * 1024,
        l1_bytes=limits.l1_kib * 1024,
        max_warps=limits.warps,
        registers=limits.registers,
        max_programs=limits.programs,
    )


_BY_CARD = {card.name: _chip(card) for card in cards.CARDS}
#: The card that the audit models for an architecture unless told otherwise: the first of `cards.CARDS`.
CHIPS = {
    arch: next(found for found in _BY_CARD.values() if found.arch == arch)
    for arch in dict.fromkeys(found.arch for found in _BY_CARD.values())
}


def chip_for(arch: int, card: str) -> Chip:
    """The card called so, or the usual one of an architecture where that is "".

    Raises: InputError for one that is not known.
    """
    return chip_named(card) if card else chip_of(arch)


def chip_named(name: str) -> Chip:
    """What the card called so sustains.

    Raises: InputError, with the names that come closest.
    """
    return _BY_CARD[cards.find(name).name]


def card_named(device_name: str) -> Chip | None:
    """The card of a device called as NVML or torch calls it ("NVIDIA H100 80GB HBM3"); None for others."""
    card = cards.of_device(device_name)
    return None if card is None else _BY_CARD[card.name]


def chip_of(arch: int) -> Chip:
    """Raises: InputError for an architecture no card is described for."""
    if arch not in CHIPS:
        known = ", ".join(f"sm_{a}" for a in CHIPS)
        raise InputError(f"no card is described for sm_{arch}; the audit knows {known}")
    return CHIPS[arch]


@dataclass(frozen=True)
class Occupancy:
    """How many programs run at once on a multiprocessor, their share of its warps, and what stops more."""

    programs: int
    share: float
    limit: str


def occupancy(chip: Chip, registers: int, shared_bytes: int, num_warps: int, tensor_columns: int = 0) -> Occupancy:
    """From registers per thread, shared bytes and warps per program.

    Registers are allotted to a warp in units of 256, shared memory in units of 128 bytes with 1 KiB kept back per
    program.
    """
    per_warp = -(-registers * 32 // 256) * 256
    limits = {
        "warps": chip.max_warps // num_warps,
        "programs": chip.max_programs,
        "registers": chip.registers // per_warp // num_warps,
        "shared": chip.shared_bytes // (-(-shared_bytes // 128) * 128 + 1024),
    }
    if tensor_columns:
        limits["tensor memory"] = chip.tensor_memory_columns // tensor_columns
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limits[limit] * num_warps / chip.max_warps, limit)
