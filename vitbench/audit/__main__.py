"""`python -m vitbench.audit`: the audit without the rest of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vitbench.audit import baseline
from vitbench.audit.records import write_csv
from vitbench.audit.registry import matches
from vitbench.audit.run import Audited, audit, parse_arch
from vitbench.audit.show import show, table
from vitbench.errors import InputError


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vitbench.audit", description=__doc__)
    parser.add_argument("--kernels", default="vitkernels", help="modules, packages or .py files, comma-separated")
    parser.add_argument("--kernel", default="*", help="wildcards on op/case/pass/dtype, comma-separated")
    parser.add_argument("--arch", default="sm_80,sm_90,sm_100")
    parser.add_argument("--out", type=Path, help="CSV to write")
    parser.add_argument("--show", help="print the hot loop of the launches that match")
    parser.add_argument("--baseline", type=Path, help="CSV or folder of committed audits to compare with")
    parser.add_argument("--accept", type=Path, help="folder to write this audit to as the new baseline")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--triton", help="folder of another triton package to compile with")
    return parser.parse_args()


def main() -> int:
    """0 no regression, 1 a regression or a launch that failed, 2 bad input or not comparable."""
    given = _arguments()
    try:
        items = audit(
            given.kernels.split(","),
            given.show or given.kernel,
            parse_arch(given.arch),
            given.processes,
            triton_path=given.triton,
        )
    except InputError as problem:
        print(problem, file=sys.stderr)
        return 2
    print("\n\n".join(show(item) for item in items) if given.show else table(items))
    rows = [item.row for item in items]
    if given.out:
        write_csv(rows, given.out)
    code = int(any(row.status != "ok" for row in rows))
    try:
        if given.accept:
            print("\n".join(f"wrote {path}" for path in baseline.accept(rows, given.accept)))
        if given.baseline:
            code = max(code, _gate(items, given.baseline, given.kernel))
    except InputError as problem:
        print(problem, file=sys.stderr)
        return 2
    return code


def _gate(items: list[Audited], path: Path, pattern: str) -> int:
    rows = [item.row for item in items]
    archs = {row.arch for row in rows}
    result = baseline.compare(
        baseline.load(path, rows),
        rows,
        lambda row: row.arch in archs and matches(row.launch_id, pattern),
    )
    print(baseline.moved_table(result))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
