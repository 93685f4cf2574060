"""Convolution and reduced-attention kernels compiled ahead of time: no spills, wide loads, matrix unit, few slots.

The audit runs in a process of its own, since nothing compiles in one that interprets. `vitbench audit` covers every
case; here is one of each kernel.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHOSEN = (
    "depthwise_conv2d/cmt_s-a-irffn-b64-nhwc/*/bf16",
    "depthwise_conv2d/cmt_s-b-reduce-b64-nhwc/*/bf16",
    "depthwise_conv2d/convmixer_1536_20-b64-nhwc/fwd/*",
    "depthwise_conv2d/convmixer_768_32-b64-nhwc/fwd/*",
    "reduced_attention/cmt_s-a-224*",
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, str]]:
    """Audit rows by (case, pass), on sm_90."""
    root = Path(__file__).resolve().parents[3]
    out = tmp_path_factory.mktemp("audit") / "audit.csv"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = f"{root}:{root / 'kernels'}"
    command = [
        sys.executable,
        "-m",
        "vitbench",
        "audit",
        "--kernels",
        "vitkernels.depthwise.audit,vitkernels.reduced.audit",
    ]
    command += ["--kernel", ",".join(CHOSEN), "--arch", "sm_90", "--processes", "1", "--out", str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with out.open() as file:
        return {(row["case"], row["pass"]): row for row in csv.DictReader(file)}


def test_nothing_spills(rows: dict[tuple[str, str], dict[str, str]]) -> None:
    assert len(rows) == 14
    assert {key: row["spill_bytes"] for key, row in rows.items() if row["spill_bytes"] != "0"} == {}


def test_matrix_unit_multiplies_matrices(rows: dict[tuple[str, str], dict[str, str]]) -> None:
    """Batched 16 x 8 x 16 products have no warp-group form: HMMA. The attention block's products have: HGMMA."""
    for (case, name), row in rows.items():
        wanted = "" if "reduce-" in case else "HGMMA" if "224" in case and name == "fwd" else "HMMA"
        assert row["matrix_instruction"].strip("-") == wanted, (case, name)


def test_3x3_with_every_epilogue_is_bound_by_bytes(rows: dict[tuple[str, str], dict[str, str]]) -> None:
    row = rows["cmt_s-a-irffn-b64-nhwc", "fwd"]
    assert row["narrowest_hot_load_bytes"] == "16"
    assert float(row["issue_us"]) < float(row["bytes_us"])
    assert float(row["bytes_ratio"]) <= 1.1


@pytest.mark.parametrize(("case", "taps", "fma_us"), [("convmixer_1536_20", 81, 275.0), ("convmixer_768_32", 49, 83.0)])
def test_large_kernels_beat_fp32_multiply_adds(
    rows: dict[tuple[str, str], dict[str, str]], case: str, taps: int, fma_us: float
) -> None:
    row = rows[f"{case}-b64-nhwc", "fwd"]
    assert float(row["modelled_us"]) < fma_us
    assert float(row["issue_slots_per_element"]) < taps / 2
