"""Parsing, control flow, loops and integer semantics, on small listings written out by hand."""

from __future__ import annotations

import random

import pytest

from vitbench.audit.sass import effects, execute, integers, pipes
from vitbench.audit.sass import listing as sass
from vitbench.audit.sass.graph import build_graph

pytestmark = pytest.mark.fast


def listing(*lines: str) -> sass.Listing:
    """A kernel from instruction lines and `label:` lines."""
    text = ['\t.section\t.text.kernel,"ax",@progbits', "kernel:"]
    address = 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
        else:
            text.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return sass.parse("\n".join(text))


def run(*lines: str, constants: dict[int, int] | None = None, grid: tuple[int, int, int] = (1, 1, 1)) -> list[float]:
    """Executions per warp and program of every instruction."""
    graph = build_graph(listing(*lines))
    ran = execute.count(graph, execute.Launched(dict(constants or {}), grid, 1))
    programs = grid[0] * grid[1] * grid[2]
    return [ran.warps[graph.block_of[i.index]] / programs for i in graph.listing.instructions]


LOOP = (
    "MOV R0, c[0x0][0x210]",
    ".L_x_0:",
    "IADD3 R0, R0, -0x1, RZ",
    "MUFU.EX2 R5, R5",
    "ISETP.GT.AND P0, PT, R0, RZ, PT",
    "@P0 BRA `(.L_x_0)",
    "EXIT",
)


def test_instructions_are_split_into_guard_opcode_and_operands() -> None:
    (first, second) = listing(
        "@!UP0 LDG.E.128.CONSTANT R4, desc[UR12][R4.64+0x4]", "IADD3 R4, P5, R8.reuse, -UR8, RZ"
    ).instructions
    assert (first.guard, first.name, first.width_bytes) == ("!UP0", "LDG", 16)
    assert first.operands == ("R4", "desc[UR12][R4.64+0x4]")
    assert second.operands == ("R4", "P5", "R8", "-UR8", "RZ")


def test_text_without_instructions_is_refused() -> None:
    with pytest.raises(ValueError, match="nvdisasm"):
        sass.parse("nothing here")


def test_wide_results_and_sources_are_followed() -> None:
    load, wide, test, spill = listing(
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "IMAD.WIDE R6, R2, 0x4, R8",
        "ISETP.NE.U32.AND.EX P0, PT, R1, R3, PT, P1",
        "STL.64 [R1+0x18], R10",
    ).instructions
    assert effects.writes(load) == ["R4", "R5", "R6", "R7"]
    assert {"R2", "R3", "UR4"} <= effects.reads(load)
    assert effects.writes(wide) == ["R6", "R7"]
    assert {"R2", "R8", "R9"} <= effects.reads(wide)
    assert effects.writes(test) == ["P0"]
    assert effects.reads(test) == {"R1", "R3", "P1"}
    assert effects.writes(spill) == ["stack+24", "stack+28"]
    assert {"R10", "R11"} <= effects.reads(spill)


def test_nested_loops_and_their_depths() -> None:
    graph = build_graph(
        listing(
            "MOV R0, 0x3", ".L_x_0:", "MOV R1, 0x2", ".L_x_1:", "IADD3 R1, R1, -0x1, RZ",
            "ISETP.NE.AND P0, PT, R1, RZ, PT", "@P0 BRA `(.L_x_1)", "IADD3 R0, R0, -0x1, RZ",
            "ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 BRA `(.L_x_0)", "EXIT", ".L_x_2:", "BRA `(.L_x_2)",
        )
    )  # fmt: skip
    found = {loop.depth: loop for loop in graph.loops}
    assert set(found) == {1, 2}, "the loop after EXIT is not reached and must not count"
    assert found[2].parent == found[1].header
    assert found[2].blocks < found[1].blocks


@pytest.mark.parametrize("trips", [1, 2, 7, 1000])
def test_run_time_trip_count(trips: int) -> None:
    assert run(*LOOP, constants={0x210: trips})[2] == trips


def test_trip_count_behind_a_spill_and_predicates_packed_in_a_register() -> None:
    executed = run(
        "MOV R0, c[0x0][0x210]",
        "STL [R1+0x8], R0",
        "MOV R0, RZ",
        ".L_x_0:",
        "LDL R2, [R1+0x8]",
        "IADD3 R0, R0, 0x1, RZ",
        "LDG.E R9, [R4.64]",
        "ISETP.LT.AND P0, PT, R0, R2, PT",
        "LOP3.LUT R9, R9, 0xfffffffb, RZ, 0xc0, !PT",
        "@P0 LOP3.LUT R9, R9, 0x4, RZ, 0xfc, !PT",
        "P2R R10, PR, RZ, 0x1",
        "LOP3.LUT P1, RZ, R9, 0x4, RZ, 0xc0, !PT",
        "@P1 BRA `(.L_x_0)",
        "EXIT",
        constants={0x210: 9},
    )
    assert executed[3] == 9


def test_guarded_units_are_told_apart_from_issue_slots() -> None:
    graph = build_graph(
        listing("ISETP.NE.AND P0, PT, RZ, RZ, PT", "@P0 MUFU.EX2 R1, R1", "@!P0 MUFU.EX2 R2, R2", "EXIT")
    )
    ran = execute.count(graph, execute.Launched({}, (4, 1, 1), 2))
    assert ran.warps == [8.0]
    assert ran.active.get(1, 0) == 0
    assert ran.active[2] == 8


def test_threads_matter_only_where_a_branch_asks() -> None:
    lines = (
        "S2R R0, SR_TID.X", "ISETP.GE.U32.AND P0, PT, R0, 0x20, PT", "@P0 BRA `(.L_x_0)", "MUFU.EX2 R1, R1",
        ".L_x_0:", "EXIT",
    )  # fmt: skip
    graph = build_graph(listing(*lines))
    ran = execute.count(graph, execute.Launched({}, (5, 1, 1), 4))
    assert ran.warps[graph.block_of[3]] == 5, "only the first of four warps"
    assert ran.warps[graph.block_of[4]] == 20
    assert not ran.guessed


def test_traps_are_never_entered() -> None:
    executed = run(
        "LDS R0, [UR4]", "ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 BRA `(.L_x_0)", "EXIT", ".L_x_0:", "BPT.TRAP 0x1",
        "EXIT",
    )  # fmt: skip
    assert executed[3] == 1
    assert executed[4] == 0


def test_endless_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "MAX_BLOCKS", 1000)
    with pytest.raises(execute.RanAway):
        run(".L_x_0:", "NOP", "BRA `(.L_x_0)", "EXIT")


def test_subroutines_return() -> None:
    executed = run(
        "CALL.REL.NOINC `(helper)", "CALL.REL.NOINC `(helper)", "EXIT", "helper:", "MUFU.RCP R4, R4",
        "RET.REL.NODEC R2 `(kernel)",
    )  # fmt: skip
    assert executed == [1, 1, 1, 2, 2]


def test_three_input_logic_matches_its_truth_table() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a, b, c, table = (rng.getrandbits(32) for _ in range(4))
        table &= 0xFF
        result = integers.lop3(a, b, c, table)
        for bit in range(32):
            row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1
            assert result >> bit & 1 == table >> row & 1


def test_unknown_bits_never_claim_more_than_every_completion_shares() -> None:
    rng = random.Random(1)
    for _ in range(200):
        table, unknown = rng.getrandbits(8), rng.getrandbits(3)
        words = [rng.getrandbits(1) for _ in range(3)]
        partial = [integers.word_of(0 if unknown >> i & 1 else word, unknown >> i & 1) for i, word in enumerate(words)]
        value, open_bits = integers.bits_of(integers.lop3_bits(*partial, table))
        outcomes = set()
        for free in range(8):
            full = [free >> i & 1 if unknown >> i & 1 else word for i, word in enumerate(words)]
            outcomes.add(integers.lop3(*full, table) & 1)
        assert open_bits & 1 == (len(outcomes) == 2)
        if len(outcomes) == 1:
            assert {value & 1} == outcomes


def test_shifts_and_permutes() -> None:
    value = 0x89ABCDEF
    assert integers.shift(("R", "U32", "HI"), 0, 8, value) == value >> 8
    assert integers.shift(("R", "S32", "HI"), 0, 8, value) == 0xFF89ABCD
    assert integers.shift(("L", "U32"), value, 4, 0) == 0x9ABCDEF0
    assert integers.shift(("L", "U64", "HI"), value, 4, 1) == 0x18
    assert integers.shift(("R", "U64"), value, 4, 1) == 0x189ABCDE
    assert integers.permute(0x33221100, 0x7632, 0x77665544) == 0x77663322
    assert integers.extend((), 0x80, 8) == 0xFFFFFF80
    assert integers.leading_one(("U32",), 0x00010000) == 16


@pytest.mark.parametrize(
    ("text", "arch", "pipe", "cycles"),
    [
        ("MUFU.EX2 R1, R1", 90, "sfu", 8),
        ("FFMA R1, R2, R3, R4", 90, "fp32", 1),
        ("FFMA R1, R2, R3, R4", 80, "fp32", 2),
        ("FMNMX R1, R2, R3, !PT", 90, "alu", 2),
        ("LDS.128 R4, [R2]", 90, "lsu", 4),
        ("LDSM.16.M88.4 R4, [R2]", 90, "lsu", 4),
        ("LDS R4, [R2]", 90, "lsu", 1),
        ("LDG.E.U16 R4, [R2.64]", 90, "lsu", 1),
        ("@!PT LDS RZ, [RZ]", 90, "control", 1),
        ("UIADD3 UR4, UR4, 0x1, URZ", 90, "uniform", 2),
    ],
)
def test_instruction_classes(text: str, arch: int, pipe: str, cycles: float) -> None:
    used = pipes.use(listing(text).instructions[0], arch)
    assert (used.pipe, used.cycles) == (pipe, cycles)


@pytest.mark.parametrize(
    ("text", "multiply_adds"),
    [
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", 16 * 8 * 16),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", 16 * 8 * 8 * 2),
        ("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0", 64 * 128 * 16 / 4),
    ],
)
def test_matrix_instructions_carry_their_shape(text: str, multiply_adds: float) -> None:
    assert pipes.use(listing(text).instructions[0], 90).multiply_adds == multiply_adds
