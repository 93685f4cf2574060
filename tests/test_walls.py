"""The walls of pyproject.toml hold: an import planted across each is reported by `make lint`'s command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}

# The contract, the file that gets an import, the import, and what is reported. Those inside a function count as well.
PLANTED = [
    (
        "kernels-alone",
        "kernels/vitkernels/runtime/launch.py",
        "def planted(): import vitbench.errors",
        "vitkernels.runtime.launch -> vitbench.errors",
    ),
    (
        "public-names",
        "vitbench/report/page.py",
        "from vitkernels.layers.derived import derived",
        "vitbench.report.page -> vitkernels.layers.derived",
    ),
    (
        "rooms-of-vitbench",
        "vitbench/measure/peak.py",
        "def planted(): from vitbench.bench import progress",
        "vitbench.measure.peak -> vitbench.bench.progress",
    ),
    (
        "rooms-of-the-audit",
        "vitbench/audit/sass/pipes.py",
        "from vitbench.audit.model import chips",
        "vitbench.audit.sass.pipes -> vitbench.audit.model.chips",
    ),
    (
        "rooms-of-vitkernels",
        "kernels/vitkernels/runtime/autograd.py",
        "def planted(): from vitkernels.depthwise import activations",
        "vitkernels.runtime.autograd -> vitkernels.depthwise.activations",
    ),
    (
        "rooms-of-attention",
        "kernels/vitkernels/attention/blocks.py",
        "def planted(): from vitkernels.attention.forward import plan",
        "vitkernels.attention.blocks -> vitkernels.attention.forward.plan",
    ),
    ("no-torch", "vitbench/results/__init__.py", "import torch", "vitbench.results -> torch"),
    ("no-torch", "vitbench/bench/plan.py", "from vitbench.models import spec", "vitbench.models.spec -> torch"),
    (
        "no-circles",
        "vitbench/certify/stage.py",
        "def planted(): from vitbench.certify import stages",
        "No cycles are allowed in vitbench.certify.",
    ),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is reported of each broken contract, with all imports planted in one copy of the code."""
    copy = tmp_path_factory.mktemp("walls")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in ("vitbench", "kernels/vitkernels"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for _, name, line, _ in PLANTED:
        with (copy / name).open("a") as file:
            file.write(f"\n{line}\n")
    program = "from importlinter.cli import lint_imports_command as run; run()"
    environment = {**os.environ, "PYTHONPATH": str(copy / "kernels"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    titles = "|".join(map(re.escape, CONTRACTS.values()))
    parts = re.split(rf"^({titles})\n-+\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("contract", "report"), [(p[0], p[3]) for p in PLANTED], ids=[p[3] for p in PLANTED])
def test_planted_import_is_reported(reports: dict[str, str], contract: str, report: str) -> None:
    assert report in reports[CONTRACTS[contract]]


def test_every_wall_is_tried() -> None:
    assert {planted[0] for planted in PLANTED} == set(CONTRACTS)
