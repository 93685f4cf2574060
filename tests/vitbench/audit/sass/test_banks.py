"""Bank conflicts, worked out by hand."""

from __future__ import annotations

import pytest

from vitbench.audit.sass.banks import wavefronts
from vitbench.audit.sass.execute import Launched
from vitbench.audit.sass.graph import build_graph
from vitbench.audit.sass.listing import Instruction
from vitbench.audit.sass.trace import trace

from .test_listing import listing

pytestmark = pytest.mark.fast
LANES = range(32)


def access(opcode: str) -> Instruction:
    return Instruction(0, 0, "", opcode, ("R0", "[R1]"), "")


@pytest.mark.parametrize(
    ("opcode", "stride", "turns"),
    [
        ("LDS", 0, 1), ("LDS", 4, 1), ("LDS", 8, 2), ("LDS", 128, 32), ("LDS", 132, 1), ("LDS.U16", 2, 1),
        ("STS.64", 8, 2), ("STS.64", 128, 32), ("LDS.128", 16, 4), ("LDS.128", 128, 32), ("LDS.128", 144, 4),
        ("LDSM.16.M88.4", 16, 4), ("LDSM.16.MT88.4", 128, 32), ("LDSM.16.M88.2", 128, 16), ("STSM.16.M88", 144, 1),
    ],
)  # fmt: skip
def test_turns_of_lanes_that_lie_apart(opcode: str, stride: int, turns: int) -> None:
    assert wavefronts([stride * lane for lane in LANES], access(opcode)) == turns


def test_a_swizzle_undoes_the_conflicts_of_rows() -> None:
    """Rows of 128 bytes, whose pieces of 16 are exchanged by the row's number, as compilers lay matrices out."""
    rows = [128 * (lane % 8) + 16 * (lane // 8 ^ lane % 8) for lane in LANES]
    assert wavefronts(rows, access("LDSM.16.M88.4")) == 4


def test_addresses_are_followed_through_the_machine_code() -> None:
    """Lanes 128 bytes apart in a loop, whatever they move by; what memory decides is not known."""
    graph = build_graph(
        listing(
            "S2R R0, SR_TID.X",
            "IMAD.SHL.U32 R1, R0, 0x80, RZ",
            "MOV R2, RZ",
            "UMOV UR4, 0x40",
            ".L_x_0:",
            "LDS R4, [R1+UR4+0x100]",
            "LDS R5, [R0.X4]",
            "LDG.E R6, desc[UR6][R8.64]",
            "LDS R7, [R6]",
            "@!PT LDS RZ, [RZ]",
            "IADD3 R1, R1, 0x4, RZ",
            "IADD3 R2, R2, 0x1, RZ",
            "ISETP.NE.AND P0, PT, R2, 0x5, PT",
            "@P0 BRA `(.L_x_0)",
            "EXIT",
        )
    )
    found = trace(graph, Launched({}, (1, 1, 1), 2)).shared_cycles
    assert found == {4: 32, 5: 1}
