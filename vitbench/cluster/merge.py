"""A run's rows as one CSV, one row a case, in the order of the plan. Imports no torch.

Rows are copied as they stand, never made anew. Where they come from different GPU types, or from other software, there
is a CSV for each: in one file they would be taken for a comparison. Different GPUs of one type go together, their rows
say which it was.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from vitbench.cluster.folder import Run
from vitbench.errors import InputError
from vitbench.measure.device import slug
from vitbench.results import lines
from vitbench.results.journal import samples_path
from vitbench.results.row import ENVIRONMENT, HEADER, SCHEMA, STATUSES, TABLE

#: What must agree for rows to go into one CSV; the rest of ENVIRONMENT tells one GPU from another of its type.
TOGETHER = tuple(name for name in ENVIRONMENT if name != "device_uuid")
_SCHEMA, _CASE, _STATUS = (HEADER.index(name) for name in ("schema", "case", "status"))
_where = itemgetter(*(HEADER.index(name) for name in TOGETHER))

Where = tuple[str, ...]


@dataclass
class Part:
    """Rows that can be compared: where they were measured, their lines by place in the plan, their files."""

    where: Where
    lines: dict[int, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    @property
    def device(self) -> str:
        return self.where[TOGETHER.index("device_name")]


@dataclass
class Merged:
    """What a merge wrote: the CSVs and what is in them; cases without a row, measured twice, and failed.

    `together` says in what the rows of one CSV differ although they were not to be compared.
    """

    written: list[tuple[Path, Part]]
    missing: int
    replaced: int
    failed: int
    together: list[str]


def merge(run: Run, out: Path, together: bool = False) -> Merged:
    """Writes the rows that there are to `out`, or beside it with the device in the name where there are several kinds.

    A case that was measured twice, as can be where a job was begun anew while it still ran, has its later row.

    Raises: InputError when a file is damaged, or holds a case that is not its shard's.
    """
    parts: dict[Where, Part] = {}
    held: dict[int, Part] = {}
    failed: set[int] = set()
    replaced = 0
    for shard in run.shards:
        places = {case: place for place, case in shard.case_ids()}
        for path in shard.row_files():
            for number, (line, cells) in enumerate(_rows(path), start=2):
                place = places.get(cells[_CASE])
                if place is None:
                    raise InputError(f"{path} line {number} is of {cells[_CASE]}, which is no case of its shard")
                where = _where(cells)
                part = parts.get(where) or parts.setdefault(where, Part(where))
                if (before := held.get(place)) is not None:
                    replaced += 1
                    del before.lines[place]
                held[place] = part
                part.lines[place] = line
                (failed.discard if cells[_STATUS] in ("ok", "unsupported") else failed.add)(place)
                if not part.files or part.files[-1] != path:
                    part.files.append(path)
    chosen = [part for part in parts.values() if part.lines]
    mixed = differences(chosen) if together else []
    if mixed:
        chosen = [_joined(chosen)]
    out.parent.mkdir(parents=True, exist_ok=True)
    written = [(_write(path, part), part) for path, part in zip(_names(out, chosen), chosen, strict=True)]
    return Merged(written, run.cases - len(held), replaced, len(failed), mixed)


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The lines of a shard's CSV and their cells.

    Raises: InputError when the file is damaged. Values are not looked at: what wrote them was checked.
    """
    text = lines.complete(path)
    # A row is one line: no cell holds a line's end, and "\n" alone is one.
    whole = text.split("\n")
    whole.pop()
    found = csv.reader(whole)
    if tuple(next(found, ())) != HEADER:
        raise InputError(f"{path} is not {TABLE.what}; it is of another version of vitbench, or damaged")
    try:
        for number, cells in enumerate(found, start=1):
            if (
                len(cells) != len(HEADER)
                or found.line_num != number + 1
                or cells[_SCHEMA] != str(SCHEMA)
                or cells[_STATUS] not in STATUSES
            ):
                raise InputError(f"{path} line {number + 1} is damaged; repair or remove that line")
            yield whole[number], cells
    except csv.Error as error:
        raise InputError(f"{path} is damaged ({error}); repair or remove the line") from error


def _joined(parts: Sequence[Part]) -> Part:
    joined = Part(parts[0].where)
    for part in parts:
        joined.lines |= part.lines
        joined.files += part.files
    return joined


def _names(out: Path, parts: Sequence[Part]) -> list[Path]:
    """`out`, or where there are several parts a name each, of the device, and numbered where that is the same."""
    if len(parts) == 1:
        return [out]
    devices = [slug(part.device) for part in parts]
    names = [
        device if devices.count(device) == 1 else f"{device}-{devices[: place + 1].count(device)}"
        for place, device in enumerate(devices)
    ]
    return [out.with_name(f"{out.stem}-{name}{out.suffix}") for name in names]


def _write(path: Path, part: Part) -> Path:
    """The rows in the order of the plan, and the samples of their files beside them; each in one step."""
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("w", encoding="utf-8", newline="") as file:
        file.write(TABLE.header_line)
        file.writelines(f"{part.lines[place]}\n" for place in sorted(part.lines))
    samples = [one for one in map(samples_path, part.files) if one.exists()]
    if samples:
        with beside.with_suffix(".samples").open("w", encoding="utf-8") as joined:
            joined.writelines(lines.complete(one, "a file of samples") for one in samples)
        beside.with_suffix(".samples").replace(samples_path(path))
    beside.replace(path)
    return path


def differences(parts: Sequence[Part]) -> list[str]:
    """In what parts differ, as phrases."""
    told = []
    for place, name in enumerate(TOGETHER):
        values = list(dict.fromkeys(part.where[place] for part in parts))
        if len(values) > 1:
            told.append(f"{name} {' or '.join(value or 'none' for value in values)}")
    return told


__all__ = ["Merged", "Part", "differences", "merge"]
