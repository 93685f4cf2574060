"""Files of lines: what is whole stays, what a kill cut short goes, and nothing that is there is read again."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from vitbench.errors import InputError
from vitbench.results import lines

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("cut", ["", "half a li", "x" * 200_000])
@pytest.mark.parametrize("before", ["", "header\n", "header\none\n"])
def test_a_line_goes_behind_the_last_whole_one(tmp_path: Path, before: str, cut: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(before + cut)
    assert lines.complete(path) == before
    lines.append(path, "two\n", "header\n")
    assert path.read_text() == (before or "header\n") + "two\n"


def test_appending_reads_the_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a line\n" * 500_000)
    taken: list[int] = []
    pread = os.pread

    def counted(descriptor: int, count: int, offset: int) -> bytes:
        taken.append(count)
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", counted)
    lines.append(path, "last\n")
    assert sum(taken) <= 1 << 16
    assert path.read_text().endswith("a line\nlast\n")


def _add(path: Path, name: str) -> None:
    for number in range(200):
        lines.append_shared(path, f"{name},{number}\n", "header\n")


def test_several_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines.append_shared(path, "zero\n", "header\n")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = path.read_text().splitlines()
    assert found[:2] == ["header", "zero"]
    for name in "ab":
        assert [line for line in found if line.startswith(name)] == [f"{name},{number}" for number in range(200)]


def test_a_shared_line_is_its_own_behind_one_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("header\nhalf")
    lines.append_shared(path, "whole\n", "header\n")
    assert path.read_text() == "header\nhalf\nwhole\n"


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="is not a list: it is not text"):
        lines.complete(path, "a list")
