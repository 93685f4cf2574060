"""What is tried ends as a line, whatever happens to it."""

from __future__ import annotations

import pytest

from vitbench.doctor.check import ABSENT, FAILED, OK, Absent, attempt

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(("error", "result", "detail"), [
    (None, OK, "fine"),
    (Absent("no counter"), ABSENT, "no counter"),
    (RuntimeError("\nfirst line\nsecond line"), FAILED, "RuntimeError: first line"),
    (ValueError(), FAILED, "ValueError: "),
])  # fmt: skip
def test_every_end_is_a_line(error: Exception | None, result: str, detail: str) -> None:
    def call() -> str:
        if error is not None:
            raise error
        return "fine"

    check = attempt("a thing", call)
    assert (check.what, check.result, check.detail) == ("a thing", result, detail)
    assert check.seconds >= 0
