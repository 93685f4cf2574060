"""Convolution and reduced-attention kernels compiled ahead of time: no spills, wide loads, matrix unit, few slots.

`vitbench audit` covers every case; here is one of each kernel.
"""

from __future__ import annotations

import pytest
import triton

from vitbench.audit.records import Row
from vitbench.audit.run import audit

CHOSEN = (
    "depthwise_conv2d/cmt_s-a-irffn-b64-nhwc/*/bf16",
    "depthwise_conv2d/cmt_s-b-reduce-b64-nhwc/*/bf16",
    "depthwise_conv2d/convmixer_1536_20-b64-nhwc/fwd/*",
    "depthwise_conv2d/convmixer_768_32-b64-nhwc/fwd/*",
    "reduced_attention/cmt_s-a-224*",
)
#: Of which slots and bytes are asked too.
COUNTED = ("depthwise_conv2d/cmt_s-a-irffn-b64-nhwc/fwd/bf16", *CHOSEN[2:4])
#: Triton that transposes tiles in shared memory two bytes at a time.
OLDER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7)

Rows = dict[tuple[str, str], Row]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Audit rows by (case, pass), on sm_90."""
    kernels = ["vitkernels.depthwise.audit", "vitkernels.reduced.audit"]
    counted = [one.row for one in audit(kernels, ",".join(COUNTED), [90], processes=1)]
    compiled = [one.row for one in audit(kernels, ",".join(CHOSEN), [90], processes=1, counted=False)]
    return {(row.case, row.pass_): row for row in (*compiled, *counted)}


def test_nothing_spills(rows: Rows) -> None:
    assert sorted(row.status for row in rows.values()) == ["compiled"] * 11 + ["ok"] * 3
    assert {key: row.spill_bytes for key, row in rows.items() if row.spill_bytes} == {}


def test_matrix_unit_multiplies_matrices(rows: Rows) -> None:
    """Batched 16 x 8 x 16 products have no warp-group form: HMMA. The attention block's products have: HGMMA."""
    for (case, name), row in rows.items():
        wanted = "" if "reduce-" in case else "HGMMA" if "224" in case and name == "fwd" else "HMMA"
        assert row.matrix_instruction == wanted, (case, name)


def test_3x3_with_every_epilogue_is_bound_by_bytes(rows: Rows) -> None:
    """Tiles of 8 channels share their sectors with a neighbour's: L2 gives each twice, which memory does not."""
    row = rows["cmt_s-a-irffn-b64-nhwc", "fwd"]
    assert row.narrowest_hot_load_bytes == 16
    assert row.issue_us < (1.1 if OLDER else 1.0) * row.bytes_us
    assert row.bytes_ratio <= 2.1
    assert row.modelled_us is not None
    at_most = 3.3 if OLDER else 1.65  # tiles of 16 channels, whose sectors are their own, took 4.3 and 1.84 times
    assert row.modelled_us < at_most * row.bytes_us


@pytest.mark.parametrize(
    ("case", "taps", "fma_us", "at_most_us"),
    [("convmixer_1536_20", 81, 275.0, 300.0), ("convmixer_768_32", 49, 83.0, 135.0)],
)
def test_large_kernels_beat_fp32_multiply_adds(
    rows: Rows, case: str, taps: int, fma_us: float, at_most_us: float
) -> None:
    row = rows[f"{case}-b64-nhwc", "fwd"]
    assert row.issue_us < fma_us, "the bound of one against that of the other: neither has waits"
    assert row.issue_slots_per_element < 0.6 * taps
    assert row.modelled_us is not None
    # Tiles of 16 channels or 32 windows took 382 and 188 us, the second 406 with Triton 3.6.
    assert row.modelled_us < (2.6 if OLDER else 1.0) * at_most_us
