"""What `vitbench doctor` does: tells what the machine has, and with --deep tries what vitbench does."""

from __future__ import annotations

import sys
import textwrap

from vitbench import columns
from vitbench.console import console
from vitbench.doctor import machine
from vitbench.doctor.check import FAILED, LATE, Check
from vitbench.doctor.options import DoctorOptions
from vitbench.measure import device as devices


def run(given: DoctorOptions) -> int:
    """Prints; 1 where something that was tried failed.

    Raises: InputError on a device that is not there.
    """
    device = devices.check_device(given.device) if given.device else devices.default_device()
    columns.check(machine.table([]), given)
    columns.show(machine.table(list(machine.findings())), given)
    if not given.deep:
        return 0
    from vitbench.doctor.deep import checks  # imports torch

    failed = 0
    for check in checks(device):
        print_check(check)
        failed += check.result in (FAILED, LATE)
    console().print(f"{failed} checks failed" if failed else f"everything works on {device}")
    return int(failed > 0)


def print_check(check: Check) -> None:
    """A line of the table, as soon as it is known; in a terminal it goes on below where it is too long."""
    width = console().width if sys.stdout.isatty() else None
    wide = 44 if width is None or width >= 100 else 24
    line = f"{check.what:{wide}} {check.result:8} {check.seconds:6.2f} s  {check.detail}".rstrip()
    print(textwrap.fill(line, width, subsequent_indent=4 * " ") if width else line, flush=True)
