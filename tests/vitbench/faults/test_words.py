"""Places where numbers have commas, and names of files that are no ASCII or no text."""

from __future__ import annotations

import locale
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.vitbench.faults.problems import CASES, MEASURE, inject, measured
from tests.vitbench.results.test_journal import make_row
from vitbench.results import journal
from vitbench.results.row import TABLE

Command = Callable[..., subprocess.CompletedProcess[str]]
#: A locale's source. Its categories that are missing are as in C.
COMMA = """comment_char %
escape_char /
LC_NUMERIC
decimal_point ","
thousands_sep "."
grouping 3;3
END LC_NUMERIC
"""


@pytest.fixture
def commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a locale "comma", which is this process's too."""
    if shutil.which("localedef") is None:
        pytest.skip("localedef is not installed")
    source = tmp_path / "source"
    source.write_text(COMMA)
    subprocess.run(
        ["localedef", "-c", "-i", source, "-f", "ANSI_X3.4-1968", tmp_path / "comma"],
        capture_output=True,
        check=False,
    )
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    before = locale.setlocale(locale.LC_NUMERIC)
    locale.setlocale(locale.LC_NUMERIC, "comma")
    assert locale.str(1.5) == "1,5"
    yield tmp_path
    locale.setlocale(locale.LC_NUMERIC, before)


@pytest.mark.fault(
    "locale with decimal commas", "a locale made for it, in the sweep and in its worker", "every number, with a point"
)
def test_numbers_have_points_whatever_the_locale(
    commas: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, "decimal_commas", str(commas))
    path = commas / "a.csv"
    rows = measured(path)
    assert [(row.status, row.reason) for row in rows] == [("ok", "")] * 3
    assert TABLE.format(journal.read(path)) == TABLE.format(rows)
    assert pd.read_csv(path)["img_per_s"].tolist() == [row.speed.img_per_s for row in journal.read(path)]
    done = command("report", str(path), "--columns", "batch,img/s")
    assert done.returncode == 0
    assert f"{rows[0].speed.img_per_s:,.4g}" in done.stdout


NAMES = {
    "spaces": "my results/a b.csv",
    "letters": "Ergebnisse für 模型/größe.csv",
    "no-text": os.fsdecode(b"r\xff/\xe4.csv"),
}


@pytest.mark.slow_fault
@pytest.mark.fault(
    "a path with spaces and non-ASCII names", "spaces, letters of other languages, bytes that are no UTF-8",
    "CSV, samples, pictures and pages, of a sweep and of a report",
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_path_holds_results(name: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, "binary")
    path = tmp_path / name
    done = command("bench", *MEASURE, "--out", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert [row.case for row in journal.read(path)] == [case.id for case in CASES]
    made = {one.name for one in path.parent.iterdir()}
    assert {path.name, path.stem + ".samples.jsonl", path.stem + ".png", path.stem + ".html"} <= made
    report = path.parent / "the report"
    done = command("report", str(path), "--out", str(report))
    assert (done.returncode, done.stderr) == (0, "")
    assert (report / "index.html").stat().st_size > 0


@pytest.mark.fast
@pytest.mark.fault("a path with spaces and non-ASCII names", "the same in a row: its weights, its reason", "the row")
def test_any_name_stands_in_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    name = os.fsdecode(b"\xe4 \x00\x1b[2J.safetensors")
    journal.append(path, make_row(weights=name, reason=f"cannot read {name}"))
    (row,) = journal.read(path)
    assert row.setup.weights == "\\udce4 [2J.safetensors"
    assert row.reason == "cannot read \\udce4 [2J.safetensors"
