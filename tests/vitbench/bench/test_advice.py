"""The one line of a sweep in which nothing could be measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vitbench.bench.advice import common_reason
from vitbench.results.row import STATUSES

pytestmark = pytest.mark.fast


def rows(*told: tuple[str, str]) -> Any:
    return [SimpleNamespace(status=status, reason=reason) for status, reason in told]


def test_reasons_that_differ_only_in_numbers_are_one() -> None:
    sizes = [("oom", f"predicted {size} MiB, 3,000 MiB are available") for size in ("4,000", "8,000.5")]
    assert common_reason(rows(*sizes)) == (
        "nothing was measured: all 2 cases are oom: predicted 4,000 MiB, 3,000 MiB are available; "
        "give a smaller --batch or --resolution"
    )


@pytest.mark.parametrize("told", [
    [("ok", "")], [("ok", ""), ("error", "a")], [("error", "a"), ("error", "b")], [("oom", "a"), ("error", "a")], [],
])  # fmt: skip
def test_other_sweeps_have_no_such_line(told: list[tuple[str, str]]) -> None:
    assert common_reason(rows(*told)) == ""


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "ok"])
def test_every_status_says_what_to_do(status: str) -> None:
    assert common_reason(rows((status, "why"))).startswith(f"nothing was measured: the only case is {status}: why; ")
