"""The Markdown that a certification ends with: a table a stage, a line a claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vitbench.certify.stage import Line, Stage

_SHOWN = ("device_name", "driver", "torch", "triton", "vitbench", "commit", "dirty")


def markdown(judged: Mapping[Stage, Sequence[Line]], environment: Mapping[str, object]) -> str:
    """Every line says pass, fail, or not run with the reason."""
    about = ", ".join(f"{name} {environment[name]}" for name in _SHOWN if environment.get(name) is not None)
    text = [f"# Certification\n\n{about}\n"]
    for stage, lines in judged.items():
        text.append(f"\n## {stage.name}: {stage.title}\n\n| | result | |\n| --- | --- | --- |\n")
        text += [f"| {_cell(line.what)} | {line.verdict} | {_cell(line.detail)} |\n" for line in lines]
    return "".join(text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write(judged: Mapping[Stage, Sequence[Line]], environment: Mapping[str, object], out: Path) -> Path:
    """Writes summary.md into the folder; returns its path."""
    path = out / "summary.md"
    path.write_text(markdown(judged, environment), encoding="utf-8")
    return path


__all__ = ["markdown", "write"]
