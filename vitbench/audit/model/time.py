"""One row of the audit: resources, counts and times of a launch on one card.

Every pipe's time is its busy cycles spread over the card. The overlapped time is the 4-norm of the pipe, L2 and memory
times: the largest dominates, and one that comes close costs a little because overlap is never perfect. On-chip times
are stretched by the imbalance of the last wave (the busiest multiprocessor decides). It knows no latency: the modelled
time, which does, is simulated (`vitbench.audit.model.simulate`). It ranks designs and guards against regressions, it
does not replace a measurement.
"""

from __future__ import annotations

from dataclasses import replace

from vitkernels import Launch

from vitbench.audit.job import Compiled
from vitbench.audit.model.chips import Chip, Occupancy, chip_of, occupancy
from vitbench.audit.model.profile import Profile
from vitbench.audit.model.simulate import Moved, Times
from vitbench.audit.records import Row, Stalls
from vitbench.audit.traffic import Traffic


def floor_us(launch: Launch, chip: Chip) -> float:
    """The least time the work could take: the slowest of memory, matrix, special-function and fp32 work."""
    return max(
        launch.bytes / chip.dram_bytes_per_us,
        launch.matrix_flops / chip.matrix_flops_per_us,
        chip.sm_cycles_us(launch.special / 16),
        chip.sm_cycles_us(launch.fma / chip.fp32_lanes),
    )


def _norm(times: list[float]) -> float:
    return float(sum(t**4 for t in times) ** 0.25)


def moved(launch: Launch, compiled: Compiled, counted: Profile, chip: Chip, traffic: Traffic | None) -> Moved:
    """Without traffic, what the instructions can move, masked lanes included."""
    if traffic is None:
        return Moved(counted.load_bytes, counted.store_bytes, counted.load_bytes)
    resident = max(_fits(chip, compiled).programs, 1)
    l1_bytes = chip.l1_bytes - resident * compiled.shared_bytes
    later = max(0.0, 1 - chip.multiprocessors / launch.programs)  # programs that are not their multiprocessor's first
    loaded = traffic.loaded(counted.bypasses, l1_bytes / resident) - later * traffic.held(counted.bypasses, l1_bytes)
    return Moved(float(loaded), float(traffic.stored), float(traffic.asked), traffic.meeting)


def model(
    launch: Launch, compiled: Compiled, counted: Profile, chip: Chip, moved: Moved, simulated: Times | None
) -> Row:
    """The row of a launch that compiled; not simulated is one that does not fit on a multiprocessor."""
    fits = _fits(chip, compiled)
    loaded, stored = moved.loaded, moved.stored
    balance = -(-launch.programs // chip.multiprocessors) * chip.multiprocessors / launch.programs
    share = chip.older_matrix_share if counted.older_matrix else 1.0
    times = {
        "issue": chip.scheduler_cycles_us(counted.issued) * balance,
        "sfu": chip.scheduler_cycles_us(counted.cycles["sfu"]) * balance,
        "matrix": 2 * counted.matrix_multiply_adds / (chip.matrix_flops_per_us * share) * balance,
        "lsu": chip.sm_cycles_us(counted.cycles["lsu"]) * balance,
        "fp32": chip.scheduler_cycles_us(counted.cycles["fp32"]) * balance,
        "alu": chip.scheduler_cycles_us(counted.cycles["alu"]) * balance,
        "l2": (loaded + stored) / chip.l2_bytes_per_us,
        "bytes": (launch.moved_bytes or launch.bytes) / chip.dram_bytes_per_us,
    }
    modelled = simulated.us if simulated else 0.0
    floor = floor_us(launch, chip)
    return Row(
        kernel=launch.op,
        case=launch.case,
        pass_=launch.pass_name,
        arch=f"sm_{chip.arch}",
        dtype=launch.dtype,
        triton=compiled.triton,
        num_warps=compiled.num_warps,
        num_stages=launch.num_stages,
        registers=compiled.registers,
        spill_bytes=compiled.stack_bytes,
        shared_bytes=compiled.shared_bytes,
        occupancy=fits.share,
        programs=launch.programs,
        matrix_instruction=counted.matrix_instruction,
        narrowest_hot_load_bytes=counted.narrowest_hot_load_bytes,
        issue_slots_per_element=counted.issued * 32 / launch.elements,
        sfu_per_element=counted.special * 32 / launch.elements,
        issue_us=times["issue"],
        sfu_us=times["sfu"],
        matrix_us=times["matrix"],
        lsu_us=times["lsu"],
        fp32_us=times["fp32"],
        alu_us=times["alu"],
        l2_us=times["l2"],
        bytes_us=times["bytes"],
        overlapped_us=_norm(list(times.values())),
        modelled_us=modelled,
        modelled_low_us=simulated.low_us if simulated else None,
        modelled_high_us=simulated.high_us if simulated else None,
        launch_us=chip.launch_us,
        bound_by=max(times, key=lambda name: times[name]),
        floor_us=floor,
        floor_share=floor / modelled if modelled else 0.0,
        loaded_bytes=round(loaded),
        stored_bytes=round(stored),
        bytes_ratio=(loaded + stored) / launch.bytes if launch.bytes else 0.0,
        occupancy_limit=fits.limit,
        exact=not counted.guessed and not counted.sampled,
        card=chip.name,
        status="ok" if fits.programs else "error",
        reason=_reason(counted) if fits.programs else _too_large(chip, fits, compiled),
        stalls=Stalls(**{_column(name): share for name, share in simulated.stalls.items()}) if simulated else Stalls(),
    )


def _column(reason: str) -> str:
    return f"stall_{reason.lower().replace(' ', '_')}"


def _fits(chip: Chip, compiled: Compiled) -> Occupancy:
    return occupancy(
        chip, compiled.registers, compiled.shared_bytes, compiled.num_warps, compiled.tensor_memory_columns
    )


def _too_large(chip: Chip, fits: Occupancy, compiled: Compiled) -> str:
    return (
        f"does not fit on a multiprocessor of the {chip.name}: too much {fits.limit} "
        f"({compiled.shared_bytes} B shared, {compiled.registers} registers, {compiled.num_warps} warps)"
    )


def resources(launch: Launch, compiled: Compiled, arch: int) -> Row:
    """The row of a launch that was compiled and not counted: status "compiled", no counts, no times."""
    chip = chip_of(arch)
    fits = _fits(chip, compiled)
    return replace(
        failure(launch, arch, compiled.triton, "" if fits.programs else _too_large(chip, fits, compiled)),
        num_warps=compiled.num_warps,
        registers=compiled.registers,
        spill_bytes=compiled.stack_bytes,
        shared_bytes=compiled.shared_bytes,
        occupancy=fits.share,
        occupancy_limit=fits.limit,
        matrix_instruction=compiled.matrix_instruction,
        status="compiled" if fits.programs else "error",
    )


def _reason(counted: Profile) -> str:
    if counted.guessed:
        places = ", ".join(f"{address:#x}" for address in sorted(counted.guessed))
        return f"branches at {places} depend on data; loops there are counted once"
    return ""


def unbounded(counted: Profile) -> str:
    """Why a launch whose loops depend on data has no counts."""
    places = ", ".join(f"{address:#x}" for address in counted.endless)
    return (
        f"loops that end at {places} depend on data, so nobody knows how often they run; "
        "give what their bounds are read from in Launch.values"
    )


def failure(launch: Launch, arch: int, triton: str, reason: str) -> Row:
    """The row of a launch that could not be compiled or counted: numbers are empty or zero, never guessed."""
    return Row(
        kernel=launch.op, case=launch.case, pass_=launch.pass_name, arch=f"sm_{arch}", dtype=launch.dtype,
        triton=triton, num_warps=launch.num_warps, num_stages=launch.num_stages, registers=0, spill_bytes=0,
        shared_bytes=0, occupancy=0.0, programs=launch.programs, matrix_instruction="", narrowest_hot_load_bytes=None,
        issue_slots_per_element=0.0, sfu_per_element=0.0, issue_us=0.0, sfu_us=0.0, matrix_us=0.0, lsu_us=0.0,
        fp32_us=0.0, alu_us=0.0, l2_us=0.0, bytes_us=0.0, overlapped_us=0.0, modelled_us=0.0, modelled_low_us=None,
        modelled_high_us=None, launch_us=None, bound_by="", floor_us=0.0, floor_share=0.0, loaded_bytes=0,
        stored_bytes=0, bytes_ratio=0.0, occupancy_limit="", exact=False, card="", status="error", reason=reason,
    )  # fmt: skip
