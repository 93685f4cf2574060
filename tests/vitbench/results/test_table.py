"""A dataclass as a CSV: its fields are the header, its types the text, its parts columns beside the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitbench.errors import InputError
from vitbench.results.table import Table

pytestmark = pytest.mark.fast


@dataclass(slots=True)
class Part:
    length: float | None = None
    right: bool | None = None


@dataclass(slots=True)
class Thing:
    name: str
    pass_: str
    count: int
    part: Part = field(default_factory=Part)
    note: str | None = None


TABLE = Table(Thing, "a list of things")
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]))
things = st.builds(
    Thing,
    texts,
    texts,
    st.integers(-(10**12), 10**12),
    st.builds(Part, st.none() | st.integers(-999, 999).map(lambda n: n / 8), st.none() | st.booleans()),
    st.none() | texts.filter(bool),
)


def test_the_header_is_the_fields_and_those_of_the_parts() -> None:
    assert TABLE.header == ("name", "pass", "count", "length", "right", "note")


@pytest.mark.fuzz
@given(st.lists(things, max_size=4))
def test_what_is_added_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Thing]) -> None:
    path = tmp_path_factory.mktemp("table") / "a.csv"
    TABLE.append(path, rows[:2])
    TABLE.append(path, rows[2:])
    assert TABLE.read(path) == rows
    assert path.read_text(encoding="utf-8").startswith(TABLE.header_line)


def test_dialects_differ_in_numbers_booleans_and_columns(tmp_path: Path) -> None:
    def five(value: float) -> str:
        return str(float(f"{value:.5g}"))

    other = Table(Thing, "things", ["count", "name", "pass", "length", "right"], five, ("False", "True"))
    row = Thing("a", "b", 3, Part(2 / 3, True))
    assert other.format([row]) == "3,a,b,0.66667,True\n"
    assert TABLE.format([row]) == "a,b,3,0.6666666667,true,\n"
    other.write(tmp_path / "a.csv", [row])
    assert other.read(tmp_path / "a.csv") == [Thing("a", "b", 3, Part(0.66667, True))]


@pytest.mark.parametrize(("line", "says"), [
    ("a,b,many,1.5,true,", "count is 'many', expected int"),
    ("a,b,1,1.5,yes,", "right is 'yes', expected false or true"),
    ("a,b,1,long,true,", "length is 'long', expected float"),
    ("a,b,,1.5,true,", "count is '', expected int"),
    ("a,b,1", "3 cells, expected 6"),
])  # fmt: skip
def test_damage_is_named_by_line_and_column(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{TABLE.header_line}a,b,1,,,\n{line}\n")
    with pytest.raises(InputError, match="line 3 is damaged") as raised:
        TABLE.read(path)
    assert says in str(raised.value)


def test_infinity_is_damage_only_where_it_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(TABLE.header_line + "a,b,1,inf,,\n")
    assert TABLE.read(path)[0].part.length == float("inf")
    with pytest.raises(InputError, match="expected a finite number"):
        Table(Thing, "things", finite=True).read(path)


@pytest.mark.parametrize(("header", "says"), [
    ("name,pass,count,length,right,colour", "unknown columns colour; it lacks the columns note"),
    ("name,pass,count,length,note,right", "its columns are in another order"),
])  # fmt: skip
def test_another_header_is_refused(tmp_path: Path, header: str, says: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(header + "\n")
    with pytest.raises(InputError, match="is not a list of things") as raised:
        TABLE.read(path)
    assert says in str(raised.value)


def test_a_row_of_an_unknown_column_is_a_fault() -> None:
    assert TABLE.of(name="a", count=1, **{"pass": "b"}, right=False) == Thing("a", "b", 1, Part(None, False))
    with pytest.raises(TypeError, match="has no columns lenght"):
        TABLE.of(name="a", count=1, **{"pass": "b"}, lenght=2.0)
