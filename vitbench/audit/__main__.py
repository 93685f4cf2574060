"""`python -m vitbench.audit`: the audit without the rest of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vitbench.audit.run import audit, parse_arch, write_csv
from vitbench.audit.show import show, table
from vitbench.errors import InputError


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vitbench.audit", description=__doc__)
    parser.add_argument("--kernels", default="vitkernels", help="modules, packages or .py files, comma-separated")
    parser.add_argument("--kernel", default="*", help="wildcards on op/case/pass/dtype, comma-separated")
    parser.add_argument("--arch", default="sm_80,sm_90,sm_100")
    parser.add_argument("--out", type=Path, help="CSV to write")
    parser.add_argument("--show", help="print the hot loop of the launches that match")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--triton", help="folder of another triton package to compile with")
    return parser.parse_args()


def main() -> int:
    """0 when every launch compiled and was counted, 1 when one failed, 2 on bad input."""
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
    if given.out:
        write_csv([item.row for item in items], given.out)
    return int(any(item.row.status != "ok" for item in items))


if __name__ == "__main__":
    sys.exit(main())
