"""Disks that are full, folders that cannot be written, two writers, and lines that are no rows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vitbench.faults.problems import MEASURE, case, inject, measured
from tests.vitbench.results.test_journal import make_row
from vitbench.errors import InputError
from vitbench.results import journal

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return ballast


@pytest.mark.slow_fault
@pytest.mark.fault(
    "disk full on append", "a disk of 1 MiB that fills up in a sweep",
    "every row so far; the one at hand is lost and measured by the same command once there is room",
)  # fmt: skip
def test_a_full_disk_costs_the_row_at_hand(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = disk / "a.csv"
    inject(monkeypatch, "binary")
    cases = [case(batch) for batch in (1, 2, 4, 5, 6, 7, 8, 9)]
    measured(path, cases[:1])
    ballast = fill(disk, leave=0)  # what is left are the ends of the files' pages
    with pytest.raises(OSError, match="No space left"):
        measured(path, cases)
    kept = path.read_bytes()
    assert 1 <= len(journal.read(path)) < len(cases)
    assert kept.endswith(b"\n")
    ballast.unlink()
    measured(path, cases)
    assert path.read_bytes().startswith(kept)
    assert [row.case for row in journal.read(path)] == [case.id for case in cases]
    assert list(journal.read_samples(path)) == [case.id for case in cases]


@pytest.mark.fast
@pytest.mark.fault(
    "disk full on append", "the same with room for 0, 1, 4,096 and 8,192 bytes", "both files, as readable as before"
)
def test_a_write_that_fails_leaves_what_was_there(disk: Path) -> None:
    path = disk / "a.csv"
    rows = 0
    for leave in (0, 1, 4096, 8192):
        ballast = fill(disk, leave)
        for _ in range(100):
            try:
                journal.append(path, make_row(batch=rows + 1, reason="x" * 300), [1.0] * 20)
            except OSError:
                break
            rows += 1
        else:
            pytest.fail("the disk was never full")
        ballast.unlink()
        if rows:
            assert [row.batch for row in journal.read(path)] == list(range(1, rows + 1))
            assert list(journal.read_samples(path)) == [make_row().case]
    assert rows > 2


@pytest.mark.fault("read-only results folder", "a disk mounted read-only", "one line, exit code 2; nothing is measured")
def test_a_folder_that_cannot_be_written_is_one_line(disk: Path, command: Command) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = command("bench", *MEASURE, "--out", str(disk / "a.csv"))
    assert done.returncode == 2
    assert done.stderr == f"vitbench: cannot write {disk / 'a.csv'}: Read-only file system; give another --out\n"
    assert list(disk.iterdir()) == []


HOLDER = """
import sys, time
from pathlib import Path
from vitbench.results import journal
with journal.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.fault(
    "two runs writing the same file", "another process holds the file, by another name; then it gets kill -9",
    "one line, exit code 2; the lock goes with its holder",
)  # fmt: skip
def test_the_second_writer_says_so(tmp_path: Path, command: Command) -> None:
    path, other = tmp_path / "a.csv", tmp_path / "b.csv"
    journal.append(path, make_row())
    other.symlink_to(path)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(other)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        done = command("bench", *MEASURE, "--out", str(path))
    finally:
        holder.kill()
        holder.communicate()
    assert done.returncode == 2
    assert done.stderr == f"vitbench: another run is writing {path}; wait for it or give another --out\n"
    assert journal.read(path) == [make_row()]
    with journal.locked(path):
        pass


@pytest.mark.fast
@pytest.mark.fault(
    "two runs writing the same file", "the lock's file is taken away between opening and locking it", "one writer"
)
def test_a_lock_that_its_holder_took_away_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    flock = journal.fcntl.flock

    def late(handle: object, how: int) -> None:
        monkeypatch.undo()
        journal.fcntl.flock(handle, how)
        (tmp_path / ".a.csv.lock").unlink()  # as the one before us does when it is done

    monkeypatch.setattr(journal.fcntl, "flock", late)
    with pytest.raises(InputError, match="another run"), journal.locked(path):
        pass
    assert journal.fcntl.flock is flock
    with journal.locked(path), pytest.raises(InputError, match="another run"), journal.locked(path):
        pass


GARBAGE = {
    "cut": b"4,cmt_s/eager\n",
    "zeros": bytes(4096) + b"\n",
    "binary": b"\x80\x81\xfe\n",
    "quote": b'4,"\n',
    "long": b"x" * 200_000 + b"\n",
    "return": b"4,a\rb\n",
}


@pytest.mark.fast
@pytest.mark.fault(
    "truncated or garbage journal line", "half a line, zeros, bytes that are no text, an open quote, 200,000 letters",
    "one line, exit code 2, that names it; the file stays as it is, and goes on without that line",
)  # fmt: skip
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_garbage_line_is_named_and_kept(garbage: bytes, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "a.csv"
    first, last = (make_row(case=f"case{batch}", batch=batch) for batch in (1, 2))
    journal.append(path, first)
    clean = path.read_bytes()
    path.write_bytes(clean + garbage)
    journal.append(path, last)
    damaged = path.read_bytes()
    assert damaged.startswith(clean + garbage)
    done = command("report", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "line 3 is damaged" in done.stderr or "not text" in done.stderr or "damaged" in done.stderr
    assert path.read_bytes() == damaged
    path.write_bytes(damaged.replace(garbage, b""))
    assert journal.read(path) == [first, last]


@pytest.mark.fast
@pytest.mark.fault(
    "truncated or garbage journal line", "a line of the samples that is no JSON, or none of ours",
    "one line, exit code 2, that names it",
)  # fmt: skip
@pytest.mark.parametrize("garbage", ["{", "[]", "{}", '{"case": "a", "latency_ms": 1}', "[" * 100_000])
def test_garbage_among_the_samples_is_named(garbage: str, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "a.csv"
    journal.append(path, make_row(), [1.0])
    with journal.samples_path(path).open("a") as file:
        file.write(garbage + "\n")
    done = command("compare", str(path), str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vitbench: {journal.samples_path(path)} line 2 is damaged; remove that line\n"


@pytest.mark.fast
@pytest.mark.fault(
    "truncated or garbage journal line", "a file without a whole line that is not ours", "the file, to the letter"
)
@pytest.mark.parametrize("content", [b"my notes", bytes(600)])
def test_a_file_that_is_not_ours_is_not_written_over(content: bytes, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "notes.csv"
    path.write_bytes(content)
    done = command("bench", *MEASURE, "--out", str(path))
    assert done.returncode == 2
    assert "is not a vitbench CSV" in done.stderr
    assert path.read_bytes() == content
