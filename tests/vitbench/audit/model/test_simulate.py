"""The simulation against times worked out by hand, on kernels of a few instructions."""

from __future__ import annotations

import re

import numpy as np
import pytest
from vitkernels import Launch

from vitbench.audit.job import Compiled
from vitbench.audit.model import simulate as simulation
from vitbench.audit.model.chips import CHIPS, chip_named
from vitbench.audit.model.decode import Kind, decode
from vitbench.audit.model.engine import REASONS
from vitbench.audit.model.latency import LATENCIES
from vitbench.audit.model.simulate import Moved, Simulated, simulate
from vitbench.audit.records import STALLS
from vitbench.audit.sass.execute import Launched
from vitbench.audit.sass.graph import Graph
from vitbench.audit.sass.listing import control_of
from vitbench.audit.sass.trace import trace

from .problems import kernel, line

H200, A100 = CHIPS[90], chip_named("A100 80GB")
HOPPER = LATENCIES[90]
LOAD = line("LDG.E.128 R4, desc[UR4][R2.64]", write=0)
USE = line("FADD R8, R4, R4", wait=0b000001)


def run(
    graph: Graph, programs: int = 1, warps: int = 4, loaded: float = 0.0, stored: float = 0.0, moved: int = 0,
    registers: int = 32,
) -> Simulated:  # fmt: skip
    launch = Launch(
        kernel=None, op="op", case="case", pass_name="fwd", dtype="bf16", args={}, grid=(programs,), elements=1,
        bytes=moved,
    )  # fmt: skip
    compiled = Compiled("", "", registers, 0, 0, 0, warps, (), "3.7.1")
    traced = trace(graph, Launched({}, (programs, 1, 1), warps))
    return simulate(graph, traced, launch, compiled, H200, Moved(loaded, stored, loaded))


def cycles(found: Simulated) -> float:
    """Of the launch, without the start of its programs."""
    return found.times.us * H200.clock_ghz * 1e3 - HOPPER.start


def test_control_words() -> None:
    """By hand, of `LDC R1, c[0x0][0x28]` in a kernel of sm_90: 0x000e300000000800."""
    found = control_of(0x000E300000000800)
    assert (found.stall, found.write_barrier, found.read_barrier, found.wait_mask) == (8, 0, None, 0)
    assert control_of(line("", stall=15, write=5, read=2, wait=0b100001)[1]).wait_mask == 33


def test_stall_counts_are_the_latency_of_arithmetic() -> None:
    graph = kernel(*[line("FADD R0, R0, R0", stall=4)] * 100)
    assert cycles(run(graph, warps=1)) == pytest.approx(400, abs=2)
    assert cycles(run(graph, warps=4)) == pytest.approx(400, abs=2)  # one warp a scheduler


def test_a_scheduler_issues_one_instruction_a_cycle() -> None:
    graph = kernel(*[line("FADD R0, R0, R0", stall=4)] * 100)
    assert cycles(run(graph, warps=32)) == pytest.approx(808, abs=10)  # eight warps a scheduler, 101 each


def test_a_special_function_takes_its_unit_for_eight_cycles() -> None:
    graph = kernel(*[line("MUFU.EX2 R0, R0", write=0)] * 50)
    assert cycles(run(graph, warps=8)) == pytest.approx(50 * 2 * 8, rel=0.03)


def test_a_wait_mask_waits_for_what_holds_the_barrier() -> None:
    """With memory's share of the loads 0 and 1: latencies of L2 and of memory."""
    kept = run(kernel(LOAD, USE), warps=1, loaded=512, moved=0)
    fetched = run(kernel(LOAD, USE), warps=1, loaded=512, moved=512)
    assert cycles(kept) == pytest.approx(HOPPER.l2, abs=20)
    assert cycles(fetched) - cycles(kept) == pytest.approx(HOPPER.memory - HOPPER.l2, abs=10)
    times = kept.times
    assert (times.low_us, times.high_us) == pytest.approx((0.75 * times.us, 1.25 * times.us), rel=0.03)
    assert next(iter(kept.shares)) == "long scoreboard"
    assert sum(kept.shares.values()) == pytest.approx(1)
    assert tuple(f"stall_{name.lower().replace(' ', '_')}" for name in REASONS) == STALLS
    share, reason = kept.waited(1)
    assert (share > 0.9, reason) == (True, "long scoreboard")


def test_loads_that_nobody_waits_for_overlap() -> None:
    apart = cycles(run(kernel(LOAD, USE, LOAD, USE), warps=1, loaded=1024))
    together = cycles(run(kernel(LOAD, LOAD, USE), warps=1, loaded=1024))
    assert apart - together == pytest.approx(HOPPER.l2, rel=0.1)


def test_a_copy_of_much_data_takes_the_bytes_over_the_rate_of_memory() -> None:
    store = line("STG.E.128 desc[UR4][R2.64], R4", wait=0b000001)
    programs = 132 * 64
    half = programs * 4 * 4 * 512.0
    found = run(kernel(*[LOAD] * 4, *[store] * 4), programs, 4, half, half, round(2 * half))
    assert found.times.us == pytest.approx(2 * half / H200.dram_bytes_per_us, rel=0.1)


def test_a_barrier_waits_for_the_last_warp() -> None:
    """The two warps of a program share no scheduler, and one of them has more to do before they meet."""
    meet = line("BAR.SYNC.DEFER_BLOCKING 0x0", stall=6)
    slow = [line("FADD R0, R0, R0", stall=10)] * 40
    graph = kernel(
        line("S2R R0, SR_TID.X", write=0),
        line("ISETP.GE.AND P0, PT, R0, 0x20, PT", stall=5, wait=1),
        line("@P0 BRA 0x2b0", stall=5),
        *slow,
        meet,
    )
    assert graph.listing.instructions[0x2B0 // 16].name == "BAR"
    found = run(graph, warps=2)
    assert cycles(found) == pytest.approx(25 + 10 + 400 + HOPPER.barrier, abs=30)
    waited = found.lost[:, REASONS.index("barrier")].sum()
    assert waited == pytest.approx(400 + 2 * HOPPER.barrier, rel=0.1)


def test_groups_of_copies_are_waited_for_from_the_oldest() -> None:
    copy = line("LDGSTS.E.BYPASS.128 [R0], desc[UR4][R2.64]", read=1)
    commit = line("LDGDEPBAR", write=0)
    arithmetic = [line("FADD R0, R0, R0", stall=10)] * 20
    leave_one = line("DEPBAR.LE SB0, 0x1", stall=1)
    leave_none = line("DEPBAR.LE SB0, 0x0", stall=1)
    body = (copy, commit, *arithmetic, copy, commit)
    early = cycles(run(kernel(*body, leave_one), warps=1, loaded=1024))
    late = cycles(run(kernel(*body, leave_none), warps=1, loaded=1024))
    assert early == pytest.approx(HOPPER.l2, rel=0.15)
    assert late - early == pytest.approx(200, rel=0.15)


def test_a_warp_groups_products_take_the_matrix_units_rate() -> None:
    """64 x 128 x 16 multiply-adds at 2,048 a cycle are 64 cycles; a narrow product from shared memory is fed slower."""
    product = line("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24")
    closing = line("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0")
    graph = kernel(*[product] * 31, closing, line("WARPGROUP.DEPBAR.LE gsb0, 0x0"))
    assert cycles(run(graph)) == pytest.approx(32 * 64 + HOPPER.matrix, rel=0.01)
    narrow = kernel(line("HGMMA.64x8x16.F32.BF16 R24, gdesc[UR4], R24"))
    code = decode(narrow, H200, HOPPER, {})
    assert (code.kind[0], code.cycles[0]) == (Kind.GROUP_PRODUCT, 2 * 16 * (64 + 8) / 128)


def test_an_older_product_runs_at_the_cards_rate() -> None:
    """16 x 8 x 16 multiply-adds: 8 cycles of an A100's quarter, 32 of an RTX 4090's."""
    graph = kernel(line("HMMA.16816.F32.BF16 R0, R4, R8, R0"))
    took = {name: decode(graph, chip_named(name), HOPPER, {}).cycles[0] for name in ("A100 80GB", "RTX 4090", "A10")}
    assert took == {"A100 80GB": 8.0, "RTX 4090": 32.0, "A10": 16.0}


def test_tensor_memory_products_end_a_phase() -> None:
    product = line("UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], tmem[UR10], idesc[UR11], !UPT")
    commit, wait = line("UTCBAR [UR12], URZ"), line("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR12], R3", write=0)
    idle = cycles(run(kernel(commit, wait)))
    described = line("UMOV UR11, 0x8200490")
    busy = cycles(run(kernel(described, *[product] * 8, commit, wait)))
    code = decode(kernel(described, product), H200, HOPPER, {})
    assert code.cycles[1] == 128 * 128 * 16 / 2048
    assert busy - idle == pytest.approx(8 * 128, rel=0.02)


def test_waves_and_tail_count() -> None:
    """Registers allow two programs at once: three on the busiest multiprocessor take two rounds, as four do."""
    graph = kernel(*[line("FADD R0, R0, R0", stall=10)] * 1000)
    two, three, four = (run(graph, 132 * n, 4, registers=255).times.us for n in (2, 3, 4))
    assert three == pytest.approx(2 * two, rel=0.05)
    assert four == pytest.approx(three, rel=0.05)
    assert run(graph, 132 * 2 + 1, 4, registers=255).times.us == three


def test_many_programs_are_scaled_from_a_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_INSTRUCTIONS", 120_000)
    graph = kernel(*[line("FADD R0, R0, R0", stall=4)] * 300)
    whole, scaled = run(graph, 132 * 80), run(graph, 132 * 800)
    assert scaled.times.us == pytest.approx(10 * whole.times.us, rel=0.05)


def test_results_are_equal_bit_by_bit() -> None:
    graph = kernel(*[LOAD, USE, line("MUFU.EX2 R0, R0", write=1)] * 20)
    first, second = (run(graph, 132 * 9, 8, loaded=1e7, moved=3_000_000) for _ in range(2))
    assert first.times == second.times
    assert np.array_equal(first.lost, second.lost)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("does not fit on a multiprocessor of the H200: too much registers")):
        run(kernel(LOAD), warps=32, registers=255)


def test_lanes_that_meet_in_a_bank_are_served_one_after_another() -> None:
    """Eight loads of lanes 4 and 128 bytes apart: one cycle of the load/store unit each, and 32."""
    lane = line("S2R R0, SR_TID.X", write=0)

    def loads(scale: str) -> float:
        address = line(f"IMAD.SHL.U32 R1, R0, {scale}, RZ", stall=6, wait=0b000001)
        return cycles(run(kernel(lane, address, *[line("LDS R4, [R1]", write=1)] * 8, line("FADD R5, R4, R4", wait=2))))

    apart, together = loads("0x4"), loads("0x80")
    assert together - apart == pytest.approx(4 * 8 * 31, abs=40)
