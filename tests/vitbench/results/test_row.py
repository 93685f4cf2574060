"""The row: a typo cannot extend it, and the files of yesterday have its header."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vitbench.results import journal
from vitbench.results.row import HEADER, TABLE, TABLES, Environment, Found, Row, columns_of

pytestmark = pytest.mark.fast

RESULTS = Path(__file__).parents[3] / "results"
#: Of sweeps, by the first column.
COMMITTED = sorted(path for path in RESULTS.rglob("*.csv") if path.read_text(encoding="utf-8").startswith("schema,"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_read_and_written_to_the_letter(path: Path) -> None:
    rows = journal.read(path)
    table = TABLES[rows[0].schema]
    assert table.header_line + table.format(rows) == path.read_text(encoding="utf-8")


def test_there_are_committed_results() -> None:
    assert COMMITTED


def test_every_part_has_slots() -> None:
    row: Any = TABLE.of(**dict.fromkeys(HEADER, ""))
    for part in (row, *(getattr(row, field.name) for field in dataclasses.fields(Row)), Found()):
        if dataclasses.is_dataclass(part):
            with pytest.raises((AttributeError, TypeError)):
                setattr(part, "img_per_sec", 1.0)  # noqa: B010
    with pytest.raises(TypeError, match="img_per_sec"):
        Row(img_per_sec=1.0)  # type: ignore[call-arg]


def test_no_two_parts_have_the_same_column() -> None:
    names = [column.name for column in columns_of(Row)]
    assert len(names) == len(set(names)) == len(HEADER)


def test_what_is_said_besides_numbers_adds_up() -> None:
    found = Found()
    found.note("one")
    found.note("two")
    assert found.reason == "one; two"
    assert Environment(device_name="a CPU").threads is None
