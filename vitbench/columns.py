"""Tables on a terminal: numbers first, text gives way, and what does not fit is named. Imports no torch.

In a terminal a table is as wide as the terminal at most; in a pipe or a file it is as wide as it is, nothing is cut.
"""

from __future__ import annotations

import fnmatch
import io
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from vitbench.console import console
from vitbench.errors import InputError, nearest

if TYPE_CHECKING:
    from rich.table import Table

Kind = Literal["key", "word", "number", "text", "note"]

GAP = 2
#: What a key folds to, and below what a text says too little, in characters.
NARROWEST = {"key": 14, "text": 8}

Columns = Annotated[str, Option("--columns", help="Only these columns of the table, in this order; commas between.")]
Sort = Annotated[
    str, Option("--sort", help="Sort by a column: numbers from the largest, text from A; -NAME turns it round.")
]
Filter = Annotated[
    str, Option("--filter", help="Only rows such as 'params_m<30,family=cmt*': < <= > >= = !=, a comma is `and`.")
]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is asked of a command's table; the options of such a command inherit it."""

    columns: Columns = ""
    sort: Sort = ""
    filter: Filter = ""

    @property
    def arguments(self) -> list[str]:
        """The same as another command of vitbench is given it."""
        asked = {"columns": self.columns, "sort": self.sort, "filter": self.filter}
        return [f"--{name}={text}" for name, text in asked.items() if text]


ALL = Shown()


def plain(value: object) -> str:
    return "" if value is None else str(value)


@dataclass(frozen=True)
class Column:
    """One column: a value for each row, and how a value is shown.

    A `key` names the row, folds where it must and always stays; a `word` is short, and is told above the table where
    all rows have the same; a `number` is never cut; a `text` is cut, then left out; a `note` moves below the table.
    `style` is what rich calls the colour of a row with that value. A `quiet` column is left out where all rows have
    the same, unless it is named.
    """

    name: str
    values: Sequence[Any]
    kind: Kind = "number"
    show: Callable[[Any], str] = plain
    style: Callable[[Any], str] = lambda value: ""
    quiet: bool = False

    @property
    def cells(self) -> list[str]:
        return [self.show(value) for value in self.values]

    @property
    def width(self) -> int:
        return max(len(self.name), *map(len, self.cells), 0)

    def rows(self, chosen: Sequence[int]) -> Column:
        return replace(self, values=[self.values[row] for row in chosen])


def filled(columns: Sequence[Column]) -> list[Column]:
    """Those that hold anything."""
    return [column for column in columns if any(column.cells)]


def choose(columns: Sequence[Column], names: str = "", sort: str = "", filter: str = "") -> list[Column]:
    """The columns and rows asked for, as --columns, --sort and --filter are typed; rows without a value sort last.

    Raises: InputError on a column that is not there, or a filter that is none.
    """
    chosen = [row for row in range(len(columns[0].values)) if _passes(columns, row, filter)] if filter else None
    if chosen == []:
        raise InputError(f"--filter {filter!r} leaves no row")
    found = list(columns) if chosen is None else [column.rows(chosen) for column in columns]
    if sort:
        by = _named(found, sort.removeprefix("-"), "--sort")
        found = [column.rows(_order(by.values, sort.startswith("-"))) for column in found]
    if not names:
        return found
    return [_named(found, name.strip(), "--columns") for name in names.split(",") if name.strip()]


def chosen(columns: Sequence[Column], asked: Shown) -> list[Column]:
    """The same, as the options of a command say; columns that hold nothing are left out, unless they are named."""
    found = choose(columns, asked.columns, asked.sort, asked.filter)
    if asked.columns:
        return found
    varied = {one.name for one in columns if len(set(one.cells)) > 1}
    return [one for one in filled(found) if one.name in varied or not one.quiet]


def check(columns: Sequence[Column], asked: Shown) -> None:
    """Refuses beforehand what a table with these columns has not, where the rows take minutes.

    Raises: InputError.
    """
    choose([replace(column, values=[]) for column in columns], asked.columns, asked.sort)
    for condition in _conditions(asked.filter):
        _parsed(columns, condition)


def _named(columns: Sequence[Column], name: str, option: str) -> Column:
    for column in columns:  # names may repeat: the first
        if column.name == name:
            return column
    raise InputError(f"{option}: the table has no column {name!r}: {nearest(name, [one.name for one in columns])}")


def _as_number(value: object) -> float | None:
    """Of a number, of one with a unit behind it ("12 ms", "+3.0%"), or of a size such as 224x384; None for others."""
    if isinstance(value, (int, float)):
        return float(value)
    found = re.fullmatch(r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)(?:%| [A-Za-z/]+|x[0-9]+)?", str(value))
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None


def _order(values: Sequence[object], turned: bool) -> list[int]:
    there = [row for row, value in enumerate(values) if value not in (None, "")]
    numbers = {row: _as_number(values[row]) for row in there}
    if all(number is not None for number in numbers.values()):
        there.sort(key=lambda row: numbers[row] or 0.0, reverse=not turned)
    else:
        there.sort(key=lambda row: str(values[row]), reverse=turned)
    return there + [row for row, value in enumerate(values) if value in (None, "")]


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "=": lambda a, b: math.isclose(a, b),
    "!=": lambda a, b: not math.isclose(a, b),
}


def _conditions(filter: str) -> list[str]:
    return [condition.strip() for condition in filter.split(",") if condition.strip()]


def _passes(columns: Sequence[Column], row: int, filter: str) -> bool:
    return all(_holds(columns, row, condition) for condition in _conditions(filter))


def _parsed(columns: Sequence[Column], condition: str) -> tuple[Column, str, str]:
    found = re.fullmatch(r"(.+?)\s*(<=|>=|!=|==|<|>|=)\s*(.*)", condition)
    if not found:
        raise InputError(f"--filter {condition!r} is no condition such as 'params_m<30' or 'family=cmt*'")
    compare, wanted = found[2].replace("==", "="), found[3]
    if compare not in ("=", "!=") and _as_number(wanted) is None:
        raise InputError(f"--filter {condition!r}: {wanted!r} is no number")
    return _named(columns, found[1].strip(), "--filter"), compare, wanted


def _holds(columns: Sequence[Column], row: int, condition: str) -> bool:
    column, compare, wanted = _parsed(columns, condition)
    value = column.values[row]
    number, limit = _as_number(value), _as_number(wanted)
    if number is not None and limit is not None:
        return _COMPARE[compare](number, limit)
    if compare in ("=", "!="):
        return fnmatch.fnmatchcase(plain(value).lower(), wanted.lower()) == (compare == "=")
    return False


@dataclass(frozen=True)
class Fitted:
    """Columns that fit, with the width of each; a line for above the table, and what is said below it."""

    columns: list[Column]
    widths: list[int]
    above: str
    below: list[str]


def fit(columns: Sequence[Column], room: int | None) -> Fitted:
    """Columns within `room` characters; None is any number of them."""
    kept = list(columns)
    widths = {id(column): column.width for column in kept}  # names may repeat
    above, below = "", list[str]()

    def over() -> int:
        return 0 if room is None else sum(widths[id(one)] + GAP for one in kept) - GAP - room

    if over() > 0:
        kept, above = _same_told_above(kept)
    if over() > 0:
        kept, below = _notes_told_below(kept)
    texts = [one for one in kept if one.kind == "text"]
    while over() > 0 and texts:
        if not _narrowed(texts, widths, over()):
            kept.remove(texts.pop())
    keys = [one for one in kept if one.kind == "key"]
    while over() > 0 and _narrowed(keys, widths, over()):
        pass
    while over() > 0 and (rest := [one for one in kept[1:] if one.kind != "key"]):
        kept.remove(rest[-1])
    lost = [one.name for one in columns if not any(one is other for other in kept) and not _told(one, above)]
    if lost:
        below.append(f"left out at {room} columns: {', '.join(lost)}")
    return Fitted(kept, [widths[id(column)] for column in kept], above, below)


def _narrowed(columns: Sequence[Column], widths: dict[int, int], over: int) -> bool:
    """Takes from the widest of these columns of one kind, down to the next one; False where none can give way."""
    if not columns:
        return False
    narrowest = NARROWEST[columns[0].kind]
    widest = max(widths[id(one)] for one in columns)
    if widest <= narrowest:
        return False
    shrinking = [one for one in columns if widths[id(one)] == widest]
    next_one = max((widths[id(one)] for one in columns if widths[id(one)] < widest), default=0)
    least = max(next_one, narrowest, widest - math.ceil(over / len(shrinking)))
    widths.update({id(one): least for one in shrinking})
    return True


def _told(column: Column, above: str) -> bool:
    """Whether a column that is not in the table is told above or below it."""
    return column.kind == "note" or bool(above and _same(column))


def _same(column: Column) -> bool:
    return column.kind == "word" and len(column.values) > 1 and len(set(column.cells)) == 1


def _same_told_above(columns: list[Column]) -> tuple[list[Column], str]:
    """Without the words that all rows share, and the line that says them."""
    told = ", ".join(f"{one.name} {one.cells[0]}" for one in columns if _same(one))
    return [one for one in columns if not _same(one)], f"every row: {told}" if told else ""


def _notes_told_below(columns: list[Column]) -> tuple[list[Column], list[str]]:
    """Without notes, and a line for each different one with the rows it is of."""
    notes = [one for one in columns if one.kind == "note"]
    rest = [one for one in columns if one.kind != "note"]
    names = [column.cells for column in rest if column.kind in ("key", "word") or column.name in ("px", "batch")]
    lines = []
    for note in notes:
        cells = note.cells
        for text in dict.fromkeys(filter(None, cells)):
            of = [" ".join(name[row] for name in names) for row, cell in enumerate(cells) if cell == text]
            more = f" and {len(of) - 3} more" if len(of) > 3 else ""
            lines.append(f"{'; '.join(of[:3])}{more}: {text}")
    return rest, lines


def table(columns: Sequence[Column], widths: Sequence[int] | None = None) -> Table:
    """The columns as rich draws them; without widths as wide as they are."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        drawn.add_column(
            column.name,
            justify="right" if column.kind == "number" else "left",
            width=widths[number] if widths else column.width,
            no_wrap=column.kind != "key",
            overflow="fold" if column.kind == "key" else "ellipsis",
        )
    styles = list(zip(*([column.style(value) for value in column.values] for column in columns), strict=True))
    for style, cells in zip(styles, zip(*(column.cells for column in columns), strict=True), strict=True):
        drawn.add_row(*cells, style=next(filter(None, style), None))
    return drawn


def text(columns: Sequence[Column]) -> str:
    """The table as plain text, as wide as it is."""
    from rich.console import Console

    out = Console(
        file=io.StringIO(), width=sum(column.width + GAP for column in columns), markup=False, highlight=False
    )
    with out.capture() as drawn:
        out.print(table(columns))
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())


def show(columns: Sequence[Column], asked: Shown = ALL) -> None:
    """Prints what is asked of the table within the terminal, or as wide as it is in a pipe.

    Raises: InputError as `choose`.
    """
    out = console()
    fitted = fit(chosen(columns, asked), out.width if sys.stdout.isatty() else None)
    if not sys.stdout.isatty():
        out.width = max(sum(fitted.widths) + GAP * len(fitted.widths), 1)
    if fitted.above:
        out.print(fitted.above, soft_wrap=True)
    with out.capture() as drawn:
        out.print(table(fitted.columns, fitted.widths))
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))
    for line in fitted.below:
        out.print(line, soft_wrap=True)


__all__ = [
    "ALL", "Column", "Columns", "Filter", "Fitted", "Shown", "Sort", "check", "choose", "chosen", "filled", "fit",
    "plain", "show", "table", "text",
]  # fmt: skip
