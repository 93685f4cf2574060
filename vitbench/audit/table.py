"""The table of docs/kernels.md: what the audit counted in each kernel at a case that stands for its use."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vitbench.audit.records import Row
from vitbench.errors import InputError
from vitbench.markdown import table

#: (operation, case) in the order of the table.
CASES = (
    ("relative_attention", "coatnet_0-s3-224"),
    ("bias_attention", "cmt_s-a-224"),
    ("gated_attention", "convit_small-224"),
    ("reduced_attention", "cmt_s-a-224-b64"),
    ("depthwise_conv2d", "cmt_s-a-irffn-b64-nhwc"),
    ("depthwise_conv2d", "convmixer_1536_20-b64-nhwc"),
)
_HEADER = (
    "kernel", "case", "pass", "registers", "spill bytes", "occupancy", "matrix instruction", "issue slots / element",
    "special / element", "L2 bytes / unavoidable", "modelled us", "floor share", "bound by",
)  # fmt: skip


def kernel_table(rows: Sequence[Row]) -> str:
    """Markdown with a line for each kernel of each of CASES, in bf16 (fp32 for those that only add up).

    Of launches that differ only in a trailing number, chunks of one pass, the slowest stands for all.

    Raises: InputError when the audit lacks one of the cases.
    """
    lines = list[Sequence[str]]()
    for kernel, case in CASES:
        found = [row for row in rows if (row.kernel, row.case, row.status) == (kernel, case, "ok")]
        if not found:
            raise InputError(f"the audit has no launch of {kernel}/{case}, for which the table of kernels has lines")
        slowest: dict[str, Row] = {}
        for row in sorted(found, key=lambda row: (row.dtype != "bf16", -row.modelled_us)):
            slowest.setdefault(re.sub(r"_\d+$", "", row.pass_), row)
        order = sorted(slowest, key=lambda name: (name.startswith("bwd"), name))
        lines += [_line(name, slowest[name]) for name in order]
    return "\n".join(table(_HEADER, lines))


def _line(name: str, row: Row) -> list[str]:
    cells = (
        row.kernel, row.case, name, row.registers, row.spill_bytes, f"{row.occupancy:.2f}",
        row.matrix_instruction or "none", f"{row.issue_slots_per_element:.3g}", f"{row.sfu_per_element:.3g}",
        f"{row.bytes_ratio:.3g}", f"{row.modelled_us:.3g}", f"{row.floor_share:.2f}", row.bound_by,
    )  # fmt: skip
    return [str(cell) for cell in cells]
