"""The workflows for users' CI are valid YAML and call options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from vitbench.cli import app

yaml = pytest.importorskip("yaml")
FOLDER = Path(__file__).parents[1] / "examples" / "ci"


def commands(found: Any) -> list[list[str]]:
    """Every `vitbench ...` command line in a parsed workflow, as words."""
    if isinstance(found, str):
        lines = found.replace("\\\n", " ").splitlines()
        return [shlex.split(line.strip()) for line in lines if line.strip().startswith("vitbench ")]
    values = found.values() if isinstance(found, dict) else found if isinstance(found, list) else []
    return [words for value in values for words in commands(value)]


@pytest.mark.parametrize(("name", "jobs"), [("github-actions.yml", ("jobs",)), ("gitlab-ci.yml", ())])
def test_workflow_audits_without_and_measures_with_a_gpu(name: str, jobs: tuple[str, ...]) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    for key in jobs:
        workflow = workflow[key]
    assert "gpu" not in str(workflow["audit"].get("runs-on", workflow["audit"].get("tags", "")))
    assert "gpu" in str(workflow["measured"].get("runs-on", workflow["measured"].get("tags")))
    known = typer.main.get_command(app)
    for job in ("audit", "measured"):
        (words,) = commands(workflow[job])
        options = {option for parameter in known.commands[words[1]].params for option in parameter.opts}  # type: ignore[attr-defined]
        assert {word for word in words if word.startswith("--")} <= options
        assert "--markdown" in words
    assert len(re.findall("verdict.md", text)) >= 4
