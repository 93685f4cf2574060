"""Attention kernels compiled ahead of time: rows far apart.

The audit runs in a process of its own, since nothing compiles in one that interprets. `vitbench audit` covers every
case; here are the ones whose counts are promised.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def audit(*options: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = f"{ROOT}:{ROOT / 'kernels'}"
    command = [sys.executable, "-m", "vitbench", "audit", "--arch", "sm_90", "--processes", "1", *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_rows_far_apart_compile() -> None:
    """Offsets of 64 bits, which the interpreter, whose integers have any size, cannot tell from others."""
    done = audit("--compile-only", "--kernels", str(Path(__file__).with_name("far_rows.py")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 launches" in done.stdout
