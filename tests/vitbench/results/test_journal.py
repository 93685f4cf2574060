"""The CSV: what is written is read back, a cut line costs one row, nothing is overwritten."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vitbench.fuzzing import understood
from vitbench.errors import InputError
from vitbench.results import journal
from vitbench.results.row import ENVIRONMENT, HEADER, HEADERS, SCHEMA, TABLE, Row, changes, environment_of

pytestmark = pytest.mark.fast


def make_row(**changes: object) -> Row:
    fields: dict[str, object] = {
        "schema": SCHEMA, "case": "cmt_s/eager/infer/fp32/nchw/224/b1/cpu", "status": "ok", "reason": "",
        "model": "cmt_s", "family": "cmt", "impl": "eager", "mode": "infer", "dtype": "fp32", "layout": "nchw",
        "device": "cpu", "device_name": "a CPU", "resolution": "224", "batch": 1, "input": "noise", "weights": "random",
    }  # fmt: skip
    return TABLE.of(**{**fields, **changes})


words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=40)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.fuzz
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # of a busy machine
@given(words, words, numbers, st.none() | st.booleans(), st.none() | st.integers(0, 10**9), numbers)
def test_any_row_survives_the_csv(
    reason: str, name: str, speed: float | None, throttled: bool | None, samples: int | None, energy: float | None
) -> None:
    row = make_row(
        reason=reason, device_name=name, img_per_s=speed, throttled=throttled, samples=samples, energy_j_per_img=energy
    )
    (cells,) = csv.reader(io.StringIO(TABLE.format([row])))
    back = dict(zip(HEADER, cells, strict=True))
    assert back["reason"] == " ".join(reason.split())
    assert back["throttled"] == {None: "", True: "true", False: "false"}[throttled]
    assert back["samples"] == ("" if samples is None else str(samples))
    if speed is None:
        assert back["img_per_s"] == ""
    else:
        assert math.isclose(float(back["img_per_s"]), speed, rel_tol=1e-6, abs_tol=1e-38)
    assert TABLE.format([row]).count("\n") == 1


CASES = [f"case{number}" for number in range(5)]
WHOLE = (TABLE.header_line + TABLE.format(make_row(case=case, reason='"a", b') for case in CASES)).encode()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example writes anew."""
    return tmp_path_factory.mktemp("fuzz") / "a.csv"


@pytest.mark.fuzz
@settings(deadline=None)
@given(st.integers(0, len(WHOLE)))
def test_a_file_cut_anywhere_has_the_rows_before(scratch: Path, size: int) -> None:
    scratch.write_bytes(WHOLE[:size])
    whole = max(0, WHOLE[:size].count(b"\n") - 1)
    assert [row.case for row in journal.read(scratch)] == CASES[:whole]
    journal.append(scratch, make_row(case="next"))
    assert [row.case for row in journal.read(scratch)] == [*CASES[:whole], "next"]


JUNK = (b"\n", b"\r", b'"', b",", bytes(50), b"nan", b"\xff", b"x" * 140_000)
junk = st.binary(max_size=30) | st.sampled_from(JUNK)


@pytest.mark.fuzz
@settings(deadline=None)
@given(st.integers(0, len(WHOLE)), st.integers(0, 100), junk)
def test_any_bytes_are_rows_or_refused_in_one_line(scratch: Path, start: int, lost: int, junk: bytes) -> None:
    scratch.write_bytes(WHOLE[:start] + junk + WHOLE[start + lost :])
    rows = understood(journal.read, scratch) or []
    assert TABLE.format(TABLE.parse([*TABLE.texts(row).values()]) for row in rows) == TABLE.format(rows)


lives = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0, 1)), max_size=4)


@pytest.mark.fuzz
@pytest.mark.fault(
    "kill -9 of the parent", "a sweep that dies again and again, after any byte of what it writes", "every row, once"
)
@settings(deadline=None)
@given(lives)
def test_a_sweep_killed_anywhere_ends_with_every_row_once(scratch: Path, lives: list[tuple[int, bool, float]]) -> None:
    """In each life it adds some rows that are not there, and dies in the last: in its samples, or in the row itself."""
    samples = journal.samples_path(scratch)
    for path in (scratch, samples):
        path.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for count, in_samples, written in [*lives, (len(CASES), False, 1.0)]:
            there = [row.case for row in journal.read(scratch)] if scratch.exists() else []
            for case in [case for case in CASES if case not in there][:count]:
                before = [path.read_bytes() if path.exists() else b"" for path in (scratch, samples)]
                journal.append(scratch, make_row(case=case), [1.5])
            if count and len(there) < len(CASES):
                if in_samples:
                    scratch.write_bytes(before[0])
                path, old = (samples, before[1]) if in_samples else (scratch, before[0])
                path.write_bytes(path.read_bytes()[: len(old) + round(written * (path.stat().st_size - len(old)))])
    assert [row.case for row in journal.read(scratch)] == CASES
    assert journal.read_samples(scratch) == {case: [1.5] for case in CASES}


def test_empty_is_not_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    journal.append(path, make_row(energy_j_per_img=0.0, avg_power_w=None))
    (row,) = journal.read(path)
    assert row.energy.energy_j_per_img == 0.0
    assert row.energy.avg_power_w is None


def test_written_rows_read_back_equal_in_types_too(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    row = make_row(
        params_m=26.25616, batch=64, dirty=False, samples=12, top1=83.5, started_at="2026-11-21T00:00:00+00:00"
    )
    journal.append(path, row)
    assert journal.read(path) == [row]


def test_pandas_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    journal.append(path, make_row(reason='comma, "quote"\nnew line', img_per_s=12.5))
    frame = pd.read_csv(path)
    assert list(frame.columns) == list(HEADER)
    assert frame.loc[0, "img_per_s"] == 12.5
    assert frame.loc[0, "reason"] == 'comma, "quote" new line'


@pytest.mark.fault("truncated or garbage journal line", "a last line that is cut short", "all other rows, and the next")
@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_line_cut_short_is_dropped_and_overwritten(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.csv"
    first, second, third = (make_row(case=f"case{i}", batch=i) for i in (1, 2, 3))
    journal.append(path, first)
    journal.append(path, second)
    path.write_bytes(path.read_bytes()[:-cut])
    assert journal.read(path) == [first]
    journal.append(path, third)
    assert journal.read(path) == [first, third]


def test_samples_stand_beside_the_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    journal.append(path, make_row(), [1.5, 2.25])
    assert journal.read_samples(path) == {make_row().case: [1.5, 2.25]}
    assert journal.samples_path(path).name == "a.samples.jsonl"


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("model,speed\ncmt_s,3\n")
    with pytest.raises(InputError, match="unknown columns speed"):
        journal.read(path)
    journal.append(tmp_path / "b.csv", make_row(schema=99))
    with pytest.raises(InputError, match="schema 99"):
        journal.read(tmp_path / "b.csv")


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_files_of_earlier_schemas_are_read_and_never_added_to(schema: int, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    old = make_row(schema=schema, top1=83.5)
    names = HEADERS[schema]
    cells = dict(zip(HEADER, next(csv.reader([TABLE.format([old])])), strict=True))
    path.write_text(",".join(names) + "\n" + ",".join(cells[name] for name in names) + "\n")
    variant = {"num_classes", "drop_path", "reparam", "checkpointing", "compile_mode", "config"}
    lacking = {1: variant | {"training_data", "source", "graphs"}, 2: variant, 3: set()}[schema]
    assert set(HEADER) - set(names) == lacking | {"predicted_img_per_s"}
    assert journal.read(path) == [old]
    now = environment_of(make_row())
    assert changes(environment_of(old), now) == [f"schema was '{schema}', is '4'"], "which refuses to resume"
    path.write_text(path.read_text().replace(f"\n{schema},", "\n4,"))
    with pytest.raises(InputError, match=f"line 2 has schema 4, its header is that of {schema}"):
        journal.read(path)


def test_damage_in_the_middle_is_named_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    journal.append(path, make_row())
    path.write_text(path.read_text() + "half,a,line\n")
    with pytest.raises(InputError, match="line 3 is damaged"):
        journal.read(path)


def test_binary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(InputError, match="not text"):
        journal.read(path)


@pytest.mark.fault("disk full on append", "RLIMIT_FSIZE in the middle of a line", "the file as it was")
def test_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A file-size limit makes the kernel cut the write in the middle of a line, as a full disk does."""
    path = tmp_path / "a.csv"
    journal.append(path, make_row())
    before = path.read_bytes()
    program = (
        "import resource, sys; from pathlib import Path; from vitbench.results import journal\n"
        f"(row,) = journal.read(Path({str(path)!r}))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 50},) * 2)\n"
        f"try: journal.append(Path({str(path)!r}), row)\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True)
    assert done.returncode == errno.EFBIG, done.stderr
    assert path.read_bytes() == before


def test_setting_aside_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    kept = []
    for batch in (1, 2, 3):
        journal.append(path, make_row(batch=batch), [1.0])
        aside = journal.set_aside(path)
        assert aside is not None
        kept.append(aside)
    assert [journal.read(aside)[0].batch for aside in kept] == [1, 2, 3]
    assert all(journal.samples_path(aside).exists() for aside in kept)
    assert journal.set_aside(path) is None


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with journal.locked(path), pytest.raises(InputError, match="another run"), journal.locked(path):
        pass
    with journal.locked(path):
        pass


def test_unwritable_folder_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"), journal.locked(tmp_path / "file" / "a.csv"):
        pass


def test_environment_changes_are_named() -> None:
    old = environment_of(make_row(torch="2.12.0", threads=2))
    assert changes(old, environment_of(make_row(torch="2.12.0", threads=2))) == []
    assert changes(old, environment_of(make_row(torch="2.13.0", threads=2))) == ["torch was '2.12.0', is '2.13.0'"]


def test_header_has_the_promised_columns() -> None:
    promised = """schema, case, status, reason, model, family, impl, mode, dtype, layout, device, resolution,
    batch, params_m, gmacs, uncounted_ops, top1, coco_ap, training_data, source, img_per_s, latency_ms_p50,
    latency_ms_ci_low, latency_ms_ci_high, latency_ms_p95, samples, stop_reason, predicted_img_per_s, compile_s,
    peak_mem_mib, reserved_mem_mib, predicted_mem_mib, avg_power_w, idle_power_w, energy_j_per_img,
    energy_net_j_per_img, energy_source, sm_clock_mhz, temperature_c, throttled, valid, rel_err, mfu, commit,
    dirty, torch, triton, driver, device_uuid, started_at"""
    names = [name.strip() for name in promised.split(",")]
    positions = [HEADER.index(name) for name in names]
    assert positions == sorted(positions)
    assert set(ENVIRONMENT) <= set(HEADER)
