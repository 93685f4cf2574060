"""Attention kernels compiled ahead of time: simulated times, the matrix unit, no spills, rows far apart.

`vitbench audit` covers every case; here are the ones whose times are promised.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitbench.audit.records import Row
from vitbench.audit.run import audit, audit_launches

from .user_shapes import launches as launches_of_shape

FAR_ROWS = str(Path(__file__).with_name("far_rows.py"))
CHOSEN = "relative_attention/coatnet_0-s3-224/*,relative_attention/coatnet_0-s3-384/fwd*,"
CHOSEN += "bias_attention/cmt_s-a-224/fwd*,bias_attention/convit_small-224/fwd*,"
CHOSEN += "gated_attention/convit_small-224/fwd*"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return [one.row for one in audit(pattern=CHOSEN, archs=[90], processes=1)]


def launches(rows: list[Row], case: str, *, backward: bool = False, op: str = "relative_attention") -> list[Row]:
    """All launches of one pass."""
    chosen = [row for row in rows if (row.kernel, row.case) == (op, case)]
    chosen = [row for row in chosen if row.pass_.startswith("bwd") == backward]
    assert chosen
    return chosen


def time_us(chosen: list[Row]) -> float:
    return sum(row.modelled_us for row in chosen)


def grace(rows: list[Row]) -> float:
    """Triton 3.8.0's code of the same kernels is 2 % slower forward and 11 % backward than that of 3.6.0 and 3.7.1."""
    return 1.12 if tuple(int(part) for part in rows[0].triton.split(".")[:2]) >= (3, 8) else 1.0


@pytest.mark.parametrize(
    ("op", "case", "limit_us"),
    [
        ("relative_attention", "coatnet_0-s3-224", 30.0),  # with 2 for the launch that expands the bias
        ("relative_attention", "coatnet_0-s3-384", 134.0),
        ("bias_attention", "cmt_s-a-224", 19.0),
    ],
)
def test_forward_is_fast(rows: list[Row], op: str, case: str, limit_us: float) -> None:
    """Simulated, on an H200."""
    assert time_us(launches(rows, case, op=op)) <= limit_us * grace(rows)


def test_backward_is_fast(rows: list[Row]) -> None:
    """Before copies ran ahead of products it took 151."""
    assert time_us(launches(rows, "coatnet_0-s3-224", backward=True)) <= 126.0 * grace(rows)


def test_backward_issues_at_most_two_and_a_half_forwards(rows: list[Row]) -> None:
    passes = (launches(rows, "coatnet_0-s3-224", backward=backward) for backward in (True, False))
    backward, forward = (sum(row.issue_slots_per_element for row in chosen) for chosen in passes)
    assert backward <= 2.5 * forward


def test_gated_attention_takes_at_most_1_3_times_bias_attention(rows: list[Row]) -> None:
    gated, bias = (launches(rows, "convit_small-224", op=op) for op in ("gated_attention", "bias_attention"))
    assert time_us(gated) <= 1.3 * time_us(bias)


def test_nothing_spills_and_the_matrix_unit_multiplies(rows: list[Row]) -> None:
    assert not {(row.case, row.pass_): row.spill_bytes for row in rows if row.spill_bytes}
    products = [row for row in rows if row.pass_ in ("fwd", "bwd_qkv", "bwd_bias")]
    assert {row.matrix_instruction for row in products} == {"HGMMA"}


def test_rows_far_apart_compile() -> None:
    """Offsets of 64 bits, which the interpreter, whose integers have any size, cannot tell from others."""
    rows = [one.row for one in audit([FAR_ROWS], archs=[90], processes=1, counted=False)]
    assert len(rows) == 9
    assert {(row.status, row.spill_bytes) for row in rows} == {("compiled", 0)}


@pytest.mark.parametrize(
    ("arch", "n", "m", "head_dim", "dtype", "apart"),
    [
        (80, 197, 577, 56, torch.float32, 1),
        (90, 49, 197, 63, torch.float32, 0),
    ],
)
def test_shapes_that_spilled_do_not(arch: int, n: int, m: int, head_dim: int, dtype: torch.dtype, apart: int) -> None:
    """They did with tiles of 32 rows: 3.4 KB at worst. All of `user_shapes` are a matter of hours."""
    made = [(launch, arch) for launch in launches_of_shape(n, m, head_dim, dtype, apart, arch)]
    rows = [one.row for one in audit_launches(made, processes=1, counted=False)]
    assert len(rows) >= 4
    assert {row.status for row in rows} == {"compiled"}
    spilled = {row.pass_: row.spill_bytes for row in rows if row.spill_bytes}
    if spilled and rows[0].triton.startswith("3.8"):
        pytest.xfail(f"Triton 3.8 needs more registers, without spills is promised with 3.6 and 3.7: {spilled} bytes")
    assert not spilled
