"""What changed since an earlier file, with the verdicts of `vitbench compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitbench.errors import InputError
from vitbench.gate import measurements, verdicts
from vitbench.gate.compare import compare
from vitbench.gate.measurements import Measured


@dataclass(frozen=True, kw_only=True)
class Change:
    """A comparison as texts.

    Attributes:
        differences: in what the machines or the software differ.
        lines: cells by `columns`, the worst first; the first cell is the verdict.
    """

    title: str
    conclusion: str
    differences: Sequence[str] = ()
    columns: Sequence[str] = ()
    lines: Sequence[Sequence[str]] = ()
    markdown: str = ""


def since(base: Path, files: Sequence[Path]) -> list[Change]:
    """Compares each file that shares a case with BASE; that it was measured otherwise is said, not refused.

    Raises: InputError where BASE cannot be read.
    """
    before = measurements.load(base)
    found: list[Change] = []
    for path in files:
        try:
            after = measurements.load(path)
        except InputError:
            continue  # another kind of file, or a damaged one, which the page says of it elsewhere
        if after.kind == before.kind and not before.cases.keys().isdisjoint(after.cases):
            found.append(_of(before, after))
    if found:
        return found
    return [Change(title=f"since {base.name}", conclusion=f"no file shares a case with {base}: nothing is compared")]


def _of(before: Measured, after: Measured) -> Change:
    result = compare(before, after, cross_environment=True)
    return Change(
        title=f"{after.path.name} since {before.path.name}",
        conclusion=verdicts.conclusion(result),
        differences=result.differences,
        columns=verdicts.COLUMNS,
        lines=[verdicts.cells(change) for change in result.changes],
        markdown=verdicts.markdown(result),
    )


__all__ = ["Change", "since"]
