"""The Markdown that a certification ends with: a table a stage, a line a claim."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitbench.certify.stage import Context, Line, Stage
from vitbench.markdown import plain

#: Where a certification's folder says what it was measured on; a row under a header.
ENVIRONMENT = "environment.csv"
_SHOWN = ("device_name", "driver", "torch", "triton", "vitbench", "commit", "dirty")


def markdown(judged: Mapping[Stage, Sequence[Line]], environment: Mapping[str, object]) -> str:
    """Every line says pass, fail, or not run with the reason."""
    about = ", ".join(f"{name} {environment[name]}" for name in _SHOWN if environment.get(name) is not None)
    text = [f"# Certification\n\n{plain(about)}\n"]
    for stage, lines in judged.items():
        text.append(f"\n## {stage.name}: {stage.title}\n\n| | result | |\n| --- | --- | --- |\n")
        text += [f"| {plain(line.what)} | {line.verdict} | {plain(line.detail)} |\n" for line in lines]
    return "".join(text)


def write(judged: Mapping[Stage, Sequence[Line]], environment: Mapping[str, object], out: Path) -> Path:
    """Writes summary.md into the folder; returns its path."""
    path = out / "summary.md"
    path.write_text(markdown(judged, environment), encoding="utf-8")
    return path


def of_folder(out: Path) -> str:
    """The summary of the CSV files that a certification left in a folder, judged anew.

    Raises: InputError where a file is damaged or of another version.
    """
    from vitbench.certify.stages import STAGES

    with (out / ENVIRONMENT).open(newline="", encoding="utf-8") as handle:
        found = next(csv.DictReader(handle), {})
    environment = {name: value or None for name, value in found.items()}
    context = Context(out, "cuda" if environment.get("driver") else "cpu")
    return markdown({stage: stage.judge(context) for stage in STAGES}, environment)


__all__ = ["ENVIRONMENT", "markdown", "of_folder", "write"]
