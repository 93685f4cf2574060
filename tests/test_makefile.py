"""Which interpreter the targets of a GPU machine take: the one that is there, and nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def recipe(target: str, *options: str) -> str:
    """What `make` would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "VENV")}
    command = ["make", "-n", "--always-make", "-C", str(ROOT), target, *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout


@pytest.mark.parametrize("target", ["certify", "kernels-bench"])
def test_an_interpreter_with_the_packages_is_used_as_it_is(target: str) -> None:
    text = recipe(target, f"PYTHON={sys.executable}", "DEVICE=cuda")
    assert f"{sys.executable} -m vitbench." in text or f"{sys.executable} -m vitbench certify" in text
    assert "--device 'cuda'" in text
    assert "pip" not in text
    assert "-m venv" not in text


@pytest.mark.parametrize("target", ["certify", "kernels-bench"])
def test_one_without_them_gets_an_environment(target: str, tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')  # no installed packages
    bare.chmod(0o755)
    text = recipe(target, f"PYTHON={bare}")
    assert f"{bare} -m venv .venv" in text
    assert ".venv/bin/python -m vitbench" in text


def test_an_environment_that_is_named_is_used() -> None:
    assert "/nowhere/bin/python -m vitbench certify" in recipe("certify", f"PYTHON={sys.executable}", "VENV=/nowhere")
    assert " -m venv" not in recipe("certify", f"PYTHON={sys.executable}", "VENV=")


def test_other_targets_keep_theirs() -> None:
    assert ".venv/bin/python -m vitbench bench" in recipe("bench", f"PYTHON={sys.executable}")
