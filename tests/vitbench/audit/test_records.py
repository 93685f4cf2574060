"""The audit's CSV: what is committed is read, and written again as it was."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from vitbench.audit.records import COLUMNS, STALLS, Stalls, read_csv, write_csv
from vitbench.errors import InputError

pytestmark = pytest.mark.fast

COMMITTED = sorted((Path(__file__).parents[3] / "results" / "baseline").glob("audit-*.csv"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_baseline_is_written_as_it_was(path: Path, tmp_path: Path) -> None:
    rows = read_csv(path)
    assert len(rows) > 100
    write_csv(rows, tmp_path / "audit.csv")
    before, after = (list(csv.DictReader(file.open(newline=""))) for file in (path, tmp_path / "audit.csv"))
    assert [{name: line[name] for name in old} for line, old in zip(after, before, strict=True)] == before


def test_shares_of_cycles_are_written_and_missing_in_files_that_do_not_have_them(tmp_path: Path) -> None:
    row = read_csv(COMMITTED[0])[0]
    new = replace(row, stalls=Stalls(**dict.fromkeys(STALLS, 0.125)))
    write_csv([new], tmp_path / "new.csv")
    assert read_csv(tmp_path / "new.csv") == [new]
    header, cells = (tmp_path / "new.csv").read_text(encoding="utf-8").splitlines()
    count = len(STALLS)
    assert tuple(header.split(",")[-count:]) == STALLS
    without = "\n".join(line.rsplit(",", count)[0] for line in (header, cells))
    (tmp_path / "old.csv").write_text(without + "\n", encoding="utf-8")
    assert read_csv(tmp_path / "old.csv") == [replace(row, stalls=Stalls())]


def test_a_file_from_before_the_simulation_has_overlapped_times_alone(tmp_path: Path) -> None:
    old = tmp_path / "old.csv"
    names = [name for name in COLUMNS if name not in ("overlapped_us", "modelled_low_us", "modelled_high_us",
                                                      "launch_us", "card", *STALLS)]  # fmt: skip
    cells = dict.fromkeys(names, "1") | {"exact": "True", "status": "ok", "modelled_us": "2.5"}
    old.write_text(",".join(names) + "\n" + ",".join(cells.values()) + "\n", encoding="utf-8")
    (row,) = read_csv(old)
    assert (row.overlapped_us, row.modelled_us, row.modelled_low_us, row.launch_us, row.card) == (
        2.5,
        2.5,
        None,
        None,
        "",
    )
    write_csv([row], tmp_path / "new.csv")
    assert read_csv(tmp_path / "new.csv") == [row]
    old.write_text(",".join(names[1:]) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="it lacks the columns kernel"):
        read_csv(old)
