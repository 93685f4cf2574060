"""What `vitbench audit` does: compile, print, write, hold against a baseline or against measurements."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vitbench import cards, columns
from vitbench.audit import baseline, page, validate
from vitbench.audit.model.chips import Chip, chip_named
from vitbench.audit.options import AuditOptions
from vitbench.audit.peers import table as peers
from vitbench.audit.records import Row, write_csv
from vitbench.audit.run import Audited, audit, parse_arch, planned
from vitbench.audit.show import show, table
from vitbench.errors import InputError
from vitbench.patterns import matches


def run(given: AuditOptions) -> int:
    """Audits and prints; 0 no regression, 1 a regression or a launch that failed, 2 not comparable.

    Raises: InputError on input that cannot be used.
    """
    if given.card == "list":
        columns.show(cards.speed_columns(), given)
        return 0
    chip = chip_named(given.card) if given.card else None
    archs = _archs(given.arch, chip)
    _check(given)
    if given.peers:
        return _peers(given, archs, chip)
    names = [name.strip() for name in given.kernels.split(",")]
    with _progress() as done:
        items = audit(
            names,
            given.show or given.kernel,
            archs,
            given.processes or None,
            triton_path=str(given.triton) if given.triton else None,
            done=done,
            counted=not given.compile_only,
            part=parse_part(given.part),
            card=chip.name if chip else "",
        )
    rows = [item.row for item in items]
    if given.out:
        write_csv(rows, given.out)
    if given.compile_only:
        return _compiled(items, baseline.matrix_instructions(given.baseline) if given.baseline else {})
    if given.html:
        given.html.parent.mkdir(parents=True, exist_ok=True)
        given.html.write_text(page.html(items), encoding="utf-8")
        print(f"wrote {given.html}")
    elif given.show:
        print("\n\n".join(show(item) for item in items))
    elif not given.baseline and not given.validate:
        columns.show(table(rows), given)
    code = int(any(row.status != "ok" for row in rows))
    if given.accept:
        print("\n".join(f"wrote {path}" for path in baseline.accept(rows, given.accept, given.kernel)))
    if given.baseline:
        left_out = {(launch.id, f"sm_{arch}") for launch, arch in planned(names, given.show or given.kernel, archs)}
        left_out -= {(row.launch_id, row.arch) for row in rows}
        code = max(code, _gate(rows, given.baseline, given.show or given.kernel, left_out, given))
    if given.validate:
        found = validate.pairs(rows, given.validate)
        columns.show(validate.table(found), given if not given.baseline else columns.ALL)
        print(validate.conclusion(found))
    return code


def _peers(given: AuditOptions, archs: Sequence[int], chip: Chip | None) -> int:
    """Ours beside its peers; 1 where it is not ahead, or has no time."""
    columns.check(peers.table([]), given)
    found = []
    with _progress() as done:
        for arch in archs:
            found += peers.compare(arch, given.kernel, given.processes or None, done, chip.name if chip else "")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        peers.TABLE.write(given.out, found)
    columns.show(peers.table(found), given)
    for fault in (case.faults for case in found if case.faults):
        print(fault)
    print(peers.verdict(found))
    return int(any(case.behind for case in found))


def _archs(arch: str, chip: Chip | None) -> list[int]:
    """The architectures asked for: by --arch, by --card, or the three that have baselines."""
    if chip is None:
        return parse_arch(arch or "sm_80,sm_90,sm_100")
    if arch and parse_arch(arch) != [chip.arch]:
        raise InputError(f"the {chip.name} is of sm_{chip.arch}, not of {arch}: give --card or --arch")
    return [chip.arch]


def parse_part(text: str) -> tuple[int, int]:
    """(3, 8) of "3/8".

    Raises: InputError.
    """
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--part {text!r} is not K/N with K from 1 to N, such as 1/8")
    return int(found[1]), int(found[2])


def _check(given: AuditOptions) -> None:
    """Refuses what would only be noticed after minutes of compiling."""
    if given.processes < 0:
        raise InputError(f"--processes is a count of 1 or more, got {given.processes}")
    of_table = baseline.moved_columns([]) if given.baseline else validate.table([]) if given.validate else table([])
    if not given.peers:
        columns.check(of_table, given)
    triton = given.triton
    if triton and not (triton / "triton" / "__init__.py").exists():
        raise InputError(f"--triton {triton} holds no triton package; `pip install --target {triton} triton==...` does")
    if given.compile_only and (given.show or given.accept or given.validate or given.markdown):
        raise InputError(
            "--compile-only counts nothing, so it goes with neither --show, --accept, --validate nor --markdown"
        )
    if given.card and (given.baseline or given.accept or given.compile_only):
        raise InputError(
            "baselines are of usual cards: --card goes with neither --baseline, --accept nor --compile-only"
        )
    others = (given.show, given.baseline, given.accept, given.validate, given.compile_only)
    if given.peers and (any(others) or parse_part(given.part) != (1, 1) or given.kernels != "vitkernels"):
        raise InputError(
            "--peers is of vitkernels and a table of its own: with it go --kernel, --arch, --card and --out"
        )
    if parse_part(given.part) != (1, 1) and (given.accept or given.validate):
        raise InputError("--part leaves launches out, so it goes with neither --accept nor --validate")
    if given.html and not given.show:
        raise InputError("--html writes what --show prints: give --show CASE too")
    if given.markdown and not given.baseline:
        raise InputError("--markdown writes what moved against a baseline: give --baseline too")
    for path in (given.baseline, given.validate):
        if path and not path.exists():
            raise InputError(f"{path} does not exist; `vitbench audit --accept FOLDER` writes a baseline")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A line on standard error that counts launches: live on a terminal, one line a hundred elsewhere."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield (
            lambda finished, total: (
                print(f"{finished}/{total} launches", file=sys.stderr) if not finished % 100 else None
            )
        )
        return
    columns = (TextColumn("compiling"), MofNCompleteColumn(), TextColumn("launches"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda finished, total: bar.update(task, completed=finished, total=total)


def _gate(
    rows: Sequence[Row], path: Path, pattern: str, left_out: Collection[tuple[str, str]], given: AuditOptions
) -> int:
    """The verdict on rows, and on launches of the baseline that are no more, but not on those that were left out."""
    archs = {row.arch for row in rows}
    result = baseline.compare(
        baseline.load(path, rows),
        rows,
        lambda row: row.arch in archs and matches(row.launch_id, pattern) and (row.launch_id, row.arch) not in left_out,
    )
    if moved := baseline.moved(result):
        columns.show(baseline.moved_columns(moved), given)
    print(baseline.conclusion(result))
    if given.markdown:
        given.markdown.write_text(baseline.moved_markdown(result), encoding="utf-8")
    return result.exit_code


def _compiled(items: Sequence[Audited], matrix: Mapping[tuple[str, str], str]) -> int:
    """What does not compile cleanly, then a line for each architecture; 1 when anything does not.

    Args:
        matrix: by launch and architecture, the matrix instruction that another Triton version compiled to.
    """
    wrong = {item.row.key: text for item in items if (text := _fault(item, matrix))}
    for key, text in wrong.items():
        print(f"{key}: {text}")
    for (arch, triton), count in sorted(Counter((item.row.arch, item.row.triton) for item in items).items()):
        faults = sum(item.row.key in wrong for item in items if (item.row.arch, item.row.triton) == (arch, triton))
        print(f"{arch} triton {triton or '?'}: {count} launches compiled, {faults} with a fault")
    return int(bool(wrong))


def _fault(item: Audited, matrix: Mapping[tuple[str, str], str]) -> str:
    row = item.row
    if row.status == "error":
        return row.reason
    if row.spill_bytes:
        return f"spills {row.spill_bytes} bytes per thread"
    if item.launch.matrix_flops and not row.matrix_instruction:
        return "multiplies matrices without the matrix unit"
    wanted = matrix.get((row.launch_id, row.arch), row.matrix_instruction)
    if baseline.weaker(row.matrix_instruction, wanted):
        return f"multiplies matrices by {row.matrix_instruction or 'none'}, where the baseline has {wanted}"
    return ""
