"""Stage 1: one of each thing that the others do, in a minute: what is broken here is known before it takes an hour."""

from __future__ import annotations

import time
from pathlib import Path

from vitbench.certify.stage import FAIL, NOT_RUN, PASS, Context, Line, Stage
from vitbench.doctor.check import ABSENT, FAILED, LATE, OK, TABLE, Check
from vitbench.doctor.command import print_check

_VERDICT = {OK: PASS, FAILED: FAIL, ABSENT: NOT_RUN, LATE: NOT_RUN}


def _path(context: Context) -> Path:
    return context.out / "doctor.csv"


def _read(context: Context) -> list[Check]:
    return TABLE.read(_path(context)) if _path(context).exists() else []


def _run(context: Context, deadline: float) -> bool:
    from vitbench.doctor.deep import SECONDS, checks

    before = _read(context)
    if before and all(check.result in (OK, ABSENT) for check in before):
        return False
    done = []
    left = deadline - time.monotonic()
    # Triton's interpreter, which launches them without a GPU, is no matter of a minute on a busy machine.
    for check in checks(context.device, left if context.small else min(SECONDS, left)):
        print_check(check)
        done.append(check)
    TABLE.write(_path(context), done)
    return False


def _judge(context: Context) -> list[Line]:
    found = [Line(check.what, _VERDICT[check.result], check.detail) for check in _read(context)]
    return found or [Line("doctor", NOT_RUN, "not reached yet")]


STAGE = Stage("doctor", "one of each thing that vitbench does", 13, _run, _judge)
__all__ = ["STAGE"]
