"""The audit's CSV: what is committed is read, and written again to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.audit.records import read_csv, write_csv

pytestmark = pytest.mark.fast

COMMITTED = sorted((Path(__file__).parents[3] / "results" / "baseline").glob("audit-*.csv"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_baseline_is_written_as_it_was(path: Path, tmp_path: Path) -> None:
    rows = read_csv(path)
    assert len(rows) > 100
    write_csv(rows, tmp_path / "audit.csv")
    assert (tmp_path / "audit.csv").read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
