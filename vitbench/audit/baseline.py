"""Is any kernel worse than the committed baseline? The machine-code gate.

A launch is slower when it spills more, lost its matrix instruction, loads narrower in its hot loop, reaches a lower
occupancy, or its modelled time rose by more than 2 %. Machine code and its simulation are deterministic, so there is no
noise to test against; a change of time is `unsure` only where a loop's trip count depends on data. Against a file from
before there was a simulation the overlapped times are compared, which both have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitbench import columns
from vitbench.audit.records import Row, read_csv, write_csv
from vitbench.columns import Column
from vitbench.errors import InputError
from vitbench.markdown import code, plain, table
from vitbench.patterns import matches

THRESHOLD = 0.02
SAME, FASTER, SLOWER, UNSURE = "same", "faster", "slower", "unsure"
_MATRIX_RANK = {"": 0, "HMMA": 1, "IMMA": 1, "DMMA": 1, "HGMMA": 2, "QGMMA": 2, "IGMMA": 2}  # newer ones: 3


@dataclass(frozen=True)
class Change:
    """One launch in both audits: the verdict, why, and the modelled times (None where there is none)."""

    key: str
    verdict: str
    reasons: tuple[str, ...]
    before_us: float | None
    after_us: float | None


@dataclass(frozen=True)
class Comparison:
    """All launches compared. `missing` are in the baseline only, `added` in the new audit only."""

    changes: list[Change]
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 no regression, 1 regression, 2 not comparable: a launch of the baseline was not audited."""
        if any(change.verdict == SLOWER for change in self.changes):
            return 1
        return 2 if self.missing else 0

    @property
    def verdict(self) -> str:
        verdicts = {change.verdict for change in self.changes}
        if SLOWER in verdicts:
            return SLOWER
        if self.missing or UNSURE in verdicts:
            return UNSURE
        return FASTER if FASTER in verdicts else SAME


def baseline_file(folder: Path, arch: str, triton: str) -> Path:
    """Machine code depends on both, so each pair has its own file: audit-sm_90-triton3.7.1.csv."""
    return folder / f"audit-{arch}-triton{triton}.csv"


def accept(rows: Sequence[Row], folder: Path, pattern: str = "*") -> list[Path]:
    """Write the baseline of every architecture and Triton version among the rows; returns the files.

    Args:
        pattern: what was audited; rows of an older file that it does not match are kept.

    Raises: InputError when a launch failed: a baseline holds only what works.
    """
    failed = [row for row in rows if row.status != "ok"]
    if failed:
        raise InputError(f"{failed[0].key} has no machine code to accept: {failed[0].reason}")
    files: dict[Path, list[Row]] = {}
    for row in rows:
        files.setdefault(baseline_file(folder, row.arch, row.triton), []).append(row)
    for path, chosen in files.items():
        kept = [] if pattern == "*" or not path.exists() else read_csv(path)
        write_csv([*chosen, *(row for row in kept if not matches(row.launch_id, pattern))], path)
    return sorted(files)


def load(path: Path, rows: Sequence[Row]) -> list[Row]:
    """The baseline for these rows: `path` itself when it is a file, else the files of their pairs in the folder.

    Raises: InputError when a file is missing.
    """
    if path.suffix == ".csv":
        return read_csv(path)
    pairs = sorted({(row.arch, row.triton) for row in rows if row.triton})
    return [row for arch, triton in pairs for row in read_csv(baseline_file(path, arch, triton))]


def weaker(instruction: str, other: str) -> bool:
    """Whether a matrix instruction (or none: "") belongs to an older unit than the other one."""
    return _MATRIX_RANK.get(instruction, 3) < _MATRIX_RANK.get(other, 3)


def matrix_instructions(path: Path) -> dict[tuple[str, str], str]:
    """The matrix instruction of each launch and architecture of a baseline, of whichever Triton version it is."""
    files = [path] if path.suffix == ".csv" else sorted(path.glob("audit-*.csv"))
    return {(row.launch_id, row.arch): row.matrix_instruction for file in files for row in read_csv(file)}


def compare(
    before: Sequence[Row], after: Sequence[Row], audited: Callable[[Row], bool] = lambda row: True
) -> Comparison:
    """Compare two audits launch by launch.

    Args:
        audited: which baseline rows the new audit was meant to cover (a filtered run covers few).

    Raises: InputError when the two were compiled by different Triton versions.
    """
    old = {row.key: row for row in before if audited(row)}
    new = {row.key: row for row in after}
    versions = {row.triton for row in old.values()} | {row.triton for row in new.values() if row.triton}
    if len(versions) > 1:
        raise InputError(
            f"not comparable: the audits were compiled by triton {' and '.join(sorted(versions))}; compare with the "
            "baseline of the same version"
        )
    changes = [_judge(old[key], new[key]) for key in sorted(old.keys() & new.keys())]
    return Comparison(changes, sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys()))


def _judge(before: Row, after: Row) -> Change:
    if after.status != "ok":
        return Change(before.key, SLOWER, (f"failed: {after.reason}",), before.modelled_us, None)
    worse = _losses(before, after)
    better = tuple(f"{text} (better)" for text in _losses(after, before, forward=False))
    name, old_us, new_us = _times(before, after)
    ratio = new_us / old_us if old_us else 1.0
    verdict = SAME
    if ratio > 1 + THRESHOLD:
        worse.append(f"{name} {ratio - 1:+.1%}, bound by {after.bound_by}")
    if worse:
        guessed = (before.reason or after.reason) and len(worse) == 1 and ratio > 1 + THRESHOLD
        verdict = UNSURE if guessed else SLOWER
    elif ratio < 1 - THRESHOLD or better:
        verdict = FASTER if ratio <= 1 + THRESHOLD else SAME
    moved = tuple(worse) + better
    if ratio < 1 - THRESHOLD:
        moved += (f"{name} {ratio - 1:+.1%}",)
    return Change(before.key, verdict, moved, old_us, new_us)


def _times(before: Row, after: Row) -> tuple[str, float, float]:
    """What both audits know: the simulated times, or the overlapped ones where one is from before simulations."""
    if (before.modelled_low_us is None) == (after.modelled_low_us is None):
        return "modelled time", before.modelled_us, after.modelled_us
    return "overlapped time", before.overlapped_us, after.overlapped_us


def _losses(before: Row, after: Row, forward: bool = True) -> list[str]:
    """What `after` lost; told from the first audit to the second whichever way round it is asked."""

    def told(name: str, old: object, new: object) -> str:
        old, new = (old, new) if forward else (new, old)
        return f"{name} {old} -> {new}"

    lost = []
    if after.spill_bytes > before.spill_bytes:
        lost.append(told("spill bytes", before.spill_bytes, after.spill_bytes))
    if weaker(after.matrix_instruction, before.matrix_instruction):
        names = (before.matrix_instruction or "none", after.matrix_instruction or "none")
        lost.append(told("matrix instruction", *names))
    if (after.narrowest_hot_load_bytes or 99) < (before.narrowest_hot_load_bytes or 99):
        lost.append(told("narrowest hot load", before.narrowest_hot_load_bytes, after.narrowest_hot_load_bytes))
    if after.occupancy < before.occupancy - 1e-4:
        lost.append(told("occupancy", f"{before.occupancy:.3f}", f"{after.occupancy:.3f}"))
    return lost


def moved(result: Comparison) -> list[Change]:
    order = {SLOWER: 0, UNSURE: 1, FASTER: 2, SAME: 3}
    return sorted((c for c in result.changes if c.reasons), key=lambda c: (order[c.verdict], c.key))


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def moved_columns(changes: Sequence[Change]) -> list[Column]:
    """A row for each of the changes that `moved` returns."""
    return [
        Column("verdict", [change.verdict for change in changes], "word"),
        Column("before us", [change.before_us for change in changes], show=_time),
        Column("after us", [change.after_us for change in changes], show=_time),
        Column("launch", [change.key for change in changes], "key"),
        Column("what moved", ["; ".join(change.reasons) for change in changes], "note"),
    ]


def moved_table(result: Comparison) -> str:
    """What moved, both ways, worst first, as plain text; one line says so when nothing did."""
    changes = moved(result)
    return "\n".join([*([columns.text(moved_columns(changes))] if changes else []), conclusion(result)])


def conclusion(result: Comparison) -> str:
    """What is only in one of the two, then the verdict in one line."""
    lines = [f"missing: {key} is in the baseline but was not audited" for key in result.missing]
    lines += [f"new: {key} is not in the baseline; accept it to guard it" for key in result.added]
    lines.append(_conclusion(result))
    return "\n".join(lines)


def _conclusion(result: Comparison) -> str:
    counts = Counter(change.verdict for change in result.changes)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in (SLOWER, UNSURE, FASTER, SAME) if counts[verdict])
    lost = f", {len(result.missing)} missing" if result.missing else ""
    return f"{result.verdict}: {len(result.changes)} launches compared: {told or 'none'}{lost}"


def moved_markdown(result: Comparison) -> str:
    """The same as Markdown for a pull request."""
    lines = [f"**vitbench audit: {_conclusion(result)}**", ""]
    if changes := moved(result):
        rows = [
            (c.verdict, code(c.key), _time(c.before_us), _time(c.after_us), plain("; ".join(c.reasons)))
            for c in changes
        ]
        lines += table(("verdict", "launch", "before us", "after us", "what moved"), rows, ("before us", "after us"))
    lines += [f"- missing: {code(key)} is in the baseline but was not audited" for key in result.missing]
    lines += [f"- new: {code(key)} is not in the baseline" for key in result.added]
    return "\n".join(lines) + "\n"
