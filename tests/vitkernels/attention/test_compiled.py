"""Attention kernels compiled ahead of time: few issue slots, the matrix unit, no spills, rows far apart.

`vitbench audit` covers every case; here are the ones whose counts are promised.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.audit.records import Row
from vitbench.audit.run import audit

FAR_ROWS = str(Path(__file__).with_name("far_rows.py"))
CHOSEN = "relative_attention/coatnet_0-s3-224/*,relative_attention/coatnet_0-s3-384/expand*,"
CHOSEN += "relative_attention/coatnet_0-s3-384/fwd*,bias_attention/convit_small-224/fwd*,"
CHOSEN += "gated_attention/convit_small-224/fwd*"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [one.row for one in audit(pattern=CHOSEN, archs=[90], processes=1)]


def slots(rows: list[Row], case: str, *, backward: bool = False, op: str = "relative_attention") -> float:
    """Issue slots per score of one pass, in all its launches."""
    chosen = [row for row in rows if (row.kernel, row.case) == (op, case)]
    chosen = [row for row in chosen if row.pass_.startswith("bwd") == backward]
    assert chosen
    return sum(row.issue_slots_per_element for row in chosen)


def spills(rows: list[Row]) -> bool:
    """Whether this Triton keeps 32 bytes a thread of CoAtNet's forward pass at 224 px on the stack, as 3.8.0 does.

    What avoids it there takes more issue slots than its 10.8: two stages 11.2, no tile for the last few rows 11.6.
    """
    return tuple(int(part) for part in rows[0].triton.split(".")[:2]) >= (3, 8)


def test_forward_takes_few_issue_slots(rows: list[Row]) -> None:
    limits = (11.5, 9.7) if spills(rows) else (10.6, 9.5)  # the launch that expands the bias included
    assert slots(rows, "coatnet_0-s3-224") <= limits[0]
    assert slots(rows, "coatnet_0-s3-384") <= limits[1]


def test_backward_takes_at_most_two_and_a_half_forwards(rows: list[Row]) -> None:
    case = "coatnet_0-s3-224"
    assert slots(rows, case, backward=True) <= 2.5 * slots(rows, case)


def test_gated_attention_takes_at_most_1_3_times_bias_attention(rows: list[Row]) -> None:
    gated, bias = (slots(rows, "convit_small-224", op=op) for op in ("gated_attention", "bias_attention"))
    assert gated <= 1.3 * bias


def test_nothing_spills_and_the_matrix_unit_multiplies(rows: list[Row]) -> None:
    spilled = {(row.case, row.pass_): row.spill_bytes for row in rows if row.spill_bytes}
    assert spilled == ({("coatnet_0-s3-224", "fwd"): 32} if spills(rows) else {})
    products = [row for row in rows if row.pass_ in ("fwd", "bwd_qkv", "bwd_bias")]
    assert {row.matrix_instruction for row in products} == {"HGMMA"}


def test_rows_far_apart_compile() -> None:
    """Offsets of 64 bits, which the interpreter, whose integers have any size, cannot tell from others."""
    rows = [one.row for one in audit([FAR_ROWS], archs=[90], processes=1, counted=False)]
    assert len(rows) == 9
    assert {(row.status, row.spill_bytes) for row in rows} == {("compiled", 0)}
