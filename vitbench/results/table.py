"""A CSV whose header is a dataclass: one line an object, a column a field, text by the field's type. Imports no torch.

A field that is a dataclass itself stands for its own fields. A name that Python keeps for itself has an underscore as a
field (`pass_`) and none as a column.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vitbench.errors import InputError
from vitbench.results import lines

T = TypeVar("T")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, the fields that lead to its value, the type in them, and whether that may be None."""

    name: str
    path: tuple[str, ...]
    kind: type
    optional: bool

    def value(self, row: object) -> Any:
        for name in self.path:
            row = getattr(row, name)
        return row


def columns_of(kind: type, path: tuple[str, ...] = ()) -> Iterator[Column]:
    """The columns of a dataclass, in the order of its fields, those of its parts where the part stands."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, optional = hints[field.name], False
        if isinstance(hint, types.UnionType):
            (hint,), optional = [arg for arg in typing.get_args(hint) if arg is not types.NoneType], True
        here = (*path, field.name)
        if dataclasses.is_dataclass(hint):
            yield from columns_of(typing.cast(type, hint), here)
        else:
            yield Column(field.name.rstrip("_"), here, hint, optional)


class Table(Generic[T]):
    """How objects of one dataclass stand in a CSV.

    Args:
        kind: the dataclass. Parts and fields that `names` leaves out must have defaults.
        what: what such a file is, for messages.
        names: the columns, where they are not all in the order of the fields.
        number: how a float is written.
        booleans: how False and True are written.
        finite: whether infinities and NaN are damage.
    """

    def __init__(
        self,
        kind: type[T],
        what: str,
        names: Sequence[str] | None = None,
        number: Callable[[float], str] = "{:.10g}".format,
        booleans: tuple[str, str] = ("false", "true"),
        finite: bool = False,
    ) -> None:
        known = {column.name: column for column in columns_of(kind)}
        self.kind, self.what = kind, what
        self.columns = [known[name] for name in (names or known)]
        self.header = tuple(column.name for column in self.columns)
        self._number, self._booleans, self._finite = number, booleans, finite

    def to_text(self, value: object) -> str:
        """A value as it stands in a cell: None is empty, a text is one line."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return self._booleans[value]
        if isinstance(value, float):
            return self._number(value)
        # One row is one line of UTF-8, whatever an error message or a file's name holds.
        text = " ".join(_CONTROL.sub(" ", str(value)).split())
        return text.encode(errors="backslashreplace").decode()

    def from_text(self, column: Column, text: str) -> Any:
        """Raises: ValueError when the text is no value of the column's type."""
        if not text and column.optional:
            return None
        try:
            if column.kind is bool:
                return bool(self._booleans.index(text))
            value = column.kind(text)
        except ValueError as error:
            expected = " or ".join(self._booleans) if column.kind is bool else column.kind.__name__
            raise ValueError(f"{column.name} is {text!r}, expected {expected}") from error
        if self._finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{column.name} is {text}, expected a finite number")
        return value

    def values(self, row: T) -> dict[str, Any]:
        """A row's values by column."""
        return {column.name: column.value(row) for column in self.columns}

    def texts(self, row: T) -> dict[str, str]:
        """A row's cells by column."""
        return {column.name: self.to_text(column.value(row)) for column in self.columns}

    def format(self, rows: Iterable[T]) -> str:
        """Rows as lines of CSV, without the header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.texts(row).values() for row in rows)
        return text.getvalue()

    @property
    def header_line(self) -> str:
        return ",".join(self.header) + "\n"

    def parse(self, cells: Sequence[str]) -> T:
        """The row of a line's cells.

        Raises: ValueError when they are too many, too few or not of the columns' types.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells, expected {len(self.columns)}")
        pairs = zip(self.columns, cells, strict=True)
        return self.of(**{column.name: self.from_text(column, text) for column, text in pairs})

    def of(self, **values: Any) -> T:
        """The row of these values by column; what is left out has its field's default."""
        given: dict[str, Any] = {}
        for column in self.columns:
            if column.name in values:
                part = given
                for name in column.path[:-1]:
                    part = part.setdefault(name, {})
                part[column.path[-1]] = values.pop(column.name)
        if values:
            raise TypeError(f"{self.what} has no columns {', '.join(values)}")
        row: T = _built(self.kind, given)
        return row

    def read(self, path: Path) -> list[T]:
        """The rows of a file; a last line cut short is left out.

        Raises: InputError when the file has another header or is damaged.
        """
        text = lines.complete(path, self.what)
        if not text and not self.header_line.encode().startswith(path.read_bytes()):
            raise InputError(f"{path} is not {self.what} (it has no whole line); give another file")
        found = csv.reader(io.StringIO(text))
        rows = []
        try:
            header = tuple(next(found, self.header))
            if header != self.header:
                raise InputError(f"{path} is not {self.what} ({self.difference(header)}); give another file")
            for cells in found:
                if any(cells):  # else an empty line, as editors leave them
                    rows.append(self.parse(cells))
        except (ValueError, csv.Error) as error:
            damage = f"{path} line {found.line_num} is damaged ({error})"
            raise InputError(f"{damage}; repair or remove that line") from error
        return rows

    def difference(self, header: Sequence[str]) -> str:
        """How a file's header is not this one, as a phrase."""
        told = []
        if unknown := [name for name in header if name not in self.header]:
            told.append(f"unknown columns {', '.join(self.to_text(name)[:60] for name in unknown[:3])}")
        if missing := [name for name in self.header if name not in header]:
            told.append(f"it lacks the columns {', '.join(missing[:3])}")
        return "; ".join(told) or "its columns are in another order"

    def append(self, path: Path, rows: Iterable[T]) -> None:
        """Adds rows, and the header to a file that is new; all are on disk on return.

        Raises: OSError when they cannot be written, with the file as readable as before.
        """
        lines.append(path, self.format(rows), self.header_line)

    def write(self, path: Path, rows: Iterable[T]) -> None:
        """Writes a file of these rows alone."""
        path.write_text(self.header_line + self.format(rows), encoding="utf-8")


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _built(kind: Any, given: dict[str, Any]) -> Any:
    """The dataclass of its fields' values, those of a part as a dictionary."""
    parts = _hints(kind)
    return kind(**{name: _built(parts[name], v) if isinstance(v, dict) else v for name, v in given.items()})


__all__ = ["Column", "Table", "columns_of"]
