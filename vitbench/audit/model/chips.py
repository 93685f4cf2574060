"""The cards whose time is modelled, and how many programs fit on a multiprocessor.

H200 and H100 (SXM): copy (4.3 TB/s of 4.8; 3.0 of 3.35) and bf16 matrix rates (790 and 798 TFLOP/s of 989) as reported
of one card each, not measured by this project; the H200's L2 is about 6 TB/s. The H100's clock, L2 and share for HMMA
are taken over from the H200, whose processor it shares, and nobody checked them. A100 (NVIDIA A100 Tensor Core GPU
Architecture white paper, 80 GB SXM: 108 multiprocessors, 1.41 GHz, 2.04 TB/s, 312 TFLOP/s) and B200 (NVIDIA Blackwell
datasheet, HGX B200: 148 multiprocessors, 1.85 GHz, 8 TB/s, 2,250 TFLOP/s dense bf16): their peaks times the shares the
H200 is reported to reach (0.90 and 0.80); L2 scaled by multiprocessors and clock. Per-multiprocessor limits: CUDA C++
Programming Guide, compute capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

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


CARDS = (
    Chip("A100-SXM4-80GB", 80, 108, 1.410, 1.83e6, 3.9e6, 250e6, 1.0, 64, 164 * 1024, 192 * 1024),
    Chip("H200", 90, 132, 1.755, 4.3e6, 6.0e6, 790e6, 0.62, 128, 228 * 1024, 256 * 1024),
    Chip("H100 80GB HBM3", 90, 132, 1.755, 3.0e6, 6.0e6, 798e6, 0.62, 128, 228 * 1024, 256 * 1024),
    Chip("B200", 100, 148, 1.850, 7.2e6, 7.1e6, 1800e6, 0.31, 128, 228 * 1024, 256 * 1024),
)
#: The card that the audit models for an architecture: the first of them.
CHIPS = {arch: next(card for card in CARDS if card.arch == arch) for arch in dict.fromkeys(c.arch for c in CARDS)}


def card_named(device_name: str) -> Chip | None:
    """The card of a device called as NVML or torch calls it ("NVIDIA H100 80GB HBM3"); None for others."""
    return next((card for card in CARDS if card.name in device_name), None)


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
