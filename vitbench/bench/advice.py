"""What to do when no case of a sweep could be measured and all say why in the same words. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vitbench.results.row import Row

_ADVICE = {
    "error": "run `vitbench doctor` to see what this machine lacks; if nothing, report the line, it is a fault",
    "unsupported": "choose another --impl, --dtype or --device",
    "oom": "give a smaller --batch or --resolution",
    "timeout": "give a longer --time-limit",
    "crashed": "one case alone (--batch 1, one --impl) shows whether the machine or the case is at fault",
    "incorrect": "--impl eager can be measured meanwhile; wrong results of all cases are a fault to report",
}


def common_reason(rows: Sequence[Row]) -> str:
    """One line on why every row failed and what to do; "" where a row is ok or the reasons are not the same.

    Reasons that differ in nothing but numbers, such as predicted sizes, are the same.
    """
    kinds = {(row.status, re.sub(r"[0-9][0-9.,]*", "#", row.reason)) for row in rows}
    if len(kinds) != 1 or rows[0].status == "ok":
        return ""
    first = rows[0]
    count = "the only case is" if len(rows) == 1 else f"all {len(rows)} cases are"
    return f"nothing was measured: {count} {first.status}: {first.reason}; {_ADVICE[first.status]}"
