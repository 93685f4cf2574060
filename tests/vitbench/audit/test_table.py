"""The table of kernels is made from an audit, one line for each kernel of each case that it shows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from vitkernels import Launch

from vitbench.audit.model.time import failure
from vitbench.audit.records import Row, write_csv
from vitbench.audit.table import CASES, kernel_table
from vitbench.errors import InputError
from vitbench.readme import fill


def row(op: str, case: str, pass_name: str, us: float, dtype: str = "bf16") -> Row:
    launch = Launch(
        kernel=None, op=op, case=case, pass_name=pass_name, dtype=dtype, args={}, grid=(1,), elements=1, bytes=1
    )
    made = failure(launch, 90, "3.7.1", "")
    return replace(made, status="ok", modelled_us=us, registers=int(us), matrix_instruction="HGMMA", bound_by="bytes")


ROWS = [
    *(row(op, case, "fwd", 10 + i) for i, (op, case) in enumerate(CASES)),
    *(row(*CASES[0], name, us) for name, us in (("bwd_bias_0", 30), ("bwd_bias_128", 40), ("expand", 2))),
    row(*CASES[0], "bwd_table", 5, "fp32"),
    row(*CASES[4], "fwd", 99, "fp32"),
    row(CASES[0][0], "another-case", "fwd", 7),
]


def test_a_line_for_each_kernel_and_the_slowest_of_its_chunks() -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in kernel_table(ROWS).splitlines()]
    assert len({len(line) for line in lines}) == 1
    shown = [(line[0], line[2], line[3]) for line in lines[2:]]
    first = CASES[0][0]
    assert shown[:4] == [
        (first, "expand", "2"), (first, "fwd", "10"), (first, "bwd_bias", "40"), (first, "bwd_table", "5"),
    ]  # fmt: skip
    assert [name for name, *_ in shown[4:]] == [op for op, _ in CASES[1:]]
    assert ("depthwise_conv2d", "fwd", "99") not in shown  # bf16 where there is bf16
    assert lines[2][-1] == "bytes"


def test_an_audit_without_a_case_is_refused() -> None:
    with pytest.raises(InputError, match="no launch of gated_attention/convit_small-224"):
        kernel_table([r for r in ROWS if r.kernel != "gated_attention"])


def test_a_page_is_filled_and_a_missing_audit_is_one_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- kernels: audit.csv -->\nold\n<!-- end -->\nafter\n")
    done = subprocess.run(
        [sys.executable, "-m", "vitbench.readme", str(page)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "page.md: no audit file" in done.stderr
    assert "old" in page.read_text()
    write_csv(ROWS, tmp_path / "audit.csv")
    filled = fill(page.read_text(), tmp_path)
    assert "old" not in filled
    assert filled.startswith("before\n<!-- kernels: audit.csv -->\n| kernel |")
    assert fill(filled, tmp_path) == filled
