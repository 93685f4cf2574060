"""Every table in terminals of several widths and in a pipe, as a user sees it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vitbench import columns
from vitbench.audit.records import read_csv
from vitbench.audit.show import table as audit_table
from vitbench.bench import max_batch
from vitbench.columns import Column
from vitbench.errors import InputError
from vitbench.report.tables import sweep_columns
from vitbench.results import journal

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ROOT / "results/intel-xeon-processor/cmt_s.csv"
AUDIT = ROOT / "results/baseline/audit-sm_90-triton3.7.1.csv"

Terminal = Callable[[int, Callable[[], object]], list[str]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What a call prints on a terminal of so many columns, line by line, without colours."""

    def shown(width: int, call: Callable[[], object]) -> list[str]:
        ours, theirs = pty.openpty()
        heard = bytearray()

        def listen() -> None:
            try:
                while more := os.read(ours, 65536):
                    heard.extend(more)
            except OSError:  # Linux tells the end so
                pass

        listener = threading.Thread(target=listen)
        listener.start()
        with monkeypatch.context() as patched, open(theirs, "w", encoding="utf-8") as stdout:
            patched.setenv("COLUMNS", str(width))
            patched.setenv("TERM", "xterm")
            patched.setattr("sys.stdout", stdout)
            call()
        listener.join()
        os.close(ours)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", heard.decode()).replace("\r\n", "\n").splitlines()

    return shown


def run(*arguments: str) -> Callable[[], object]:
    def call() -> None:
        from vitbench import cli

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("sys.argv", ["vitbench", *arguments])
            with pytest.raises(SystemExit):
                cli.main()

    return call


def launches() -> None:
    columns.show(audit_table(read_csv(AUDIT)[:20]))


def batches() -> None:
    lines = [
        max_batch.Line("vit_base_patch16_224/eager/train/amp/nchw/224/cuda", 1010, 1000),
        max_batch.Line("resnet50/eager/train/amp/nchw/224/cuda", None, 900, "crashed at batch 900: worker: killed"),
    ]
    columns.show(max_batch.table(lines))


def report() -> None:
    columns.show(sweep_columns(journal.read(SWEEP)))


FIRST = read_csv(AUDIT)[0]
#: A call, and numbers that no width may take away.
TABLES: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "list": (run("list", "cmt*"), ("9.492426", "0.6389", " 160", "79.0")),
    "list all": (run("list"), ("5.717416", "1.2537", " 224", "75.45")),
    "list of cards": (run("memory", "--gpu", "list"), ("79.25",)),
    "cards of the audit": (run("audit", "--card", "list"), ("1.410", "2039", "108")),
    "memory": (run("memory", "--model", "cmt_ti", "--gpu", "A100 80GB,RTX 4090", "--batch", "8"), (" 71 ", "fits")),
    "sweep": (report, ("14.87", "67.26", "17.8%")),
    "compare": (run("compare", str(SWEEP), str(SWEEP)), ("+0.0%",)),
    "max-batch": (batches, ("1010", "1000", "1.010", "crashed at batch 900: worker: killed")),
    "audit": (launches, (f"{FIRST.modelled_us:.2f}", f"{FIRST.floor_us:.2f}")),
    "doctor": (run("doctor"), ("yes",)),
}


@pytest.mark.parametrize("name", TABLES)
def test_numbers_are_there_at_every_width(name: str, terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    call, numbers = TABLES[name]
    for width in (60, 80, 100, 200):
        lines = terminal(width, call)
        text = "\n".join(lines)
        assert all(number in text for number in numbers), (width, text)
        drawn = [line for line in lines if "  " in line]
        assert drawn
        assert all(len(line.rstrip()) <= width for line in drawn), (width, text)
    capsys.readouterr()
    call()
    piped = capsys.readouterr().out
    assert all(number in piped for number in numbers)
    assert not any(sign in piped for sign in ("\x1b", "…", "left out at"))
    assert not any(line.endswith(" ") for line in piped.splitlines() if name != "doctor")


def test_a_dry_run_begins_with_numbers_where_names_would_push_them_out(terminal: Terminal) -> None:
    dry = run("bench", "--model", "resnet18", "--batch", "1", "--resolution", "native", "--dry-run")
    assert any(line.split()[:2] == ["11.689512", "1.8141"] for line in terminal(60, dry))
    assert any(re.match(r"resnet18/\S+ +11.689512 +1.8141 ", line) for line in terminal(200, dry))


SOME = [
    Column("model", ["vit_base_patch16_224", "resnet50", "cmt_s"], "key"),
    Column("family", ["vit", "resnet", "cmt"], "text"),
    Column("mode", ["infer"] * 3, "word"),
    Column("top1", [None, 80.4, 83.5]),
    Column("params_m", [86.6, 25.6, 26.3]),
    Column("note", ["", "crashed: why it crashed", ""], "note"),
]


def of(column: str, chosen: list[Column]) -> list[object]:
    return list(next(one for one in chosen if one.name == column).values)


def test_rows_and_columns_can_be_chosen() -> None:
    assert of("model", columns.choose(SOME, sort="top1")) == ["cmt_s", "resnet50", "vit_base_patch16_224"]
    assert of("model", columns.choose(SOME, sort="-top1")) == ["resnet50", "cmt_s", "vit_base_patch16_224"]
    assert of("model", columns.choose(SOME, sort="model")) == ["cmt_s", "resnet50", "vit_base_patch16_224"]
    assert of("model", columns.choose(SOME, filter="params_m<30,family=C*")) == ["cmt_s"]
    assert of("model", columns.choose(SOME, filter="top1>=83.5")) == ["cmt_s"], "a missing value is not above"
    assert of("model", columns.choose(SOME, filter="model!=res*, params_m >= 26.3")) == [
        "vit_base_patch16_224", "cmt_s",
    ]  # fmt: skip
    assert [one.name for one in columns.choose(SOME, names="top1, model")] == ["top1", "model"]
    for wrong, says in (
        ({"names": "top"}, "--columns: the table has no column 'top'.*top1"),
        ({"sort": "size"}, "--sort: .*'size'"),
        ({"filter": "params_m"}, "no condition"),
        ({"filter": "params_m<many"}, "no number"),
        ({"filter": "top1>99"}, "leaves no row"),
    ):
        with pytest.raises(InputError, match=says):
            columns.choose(SOME, **wrong)


def test_what_does_not_fit_is_said() -> None:
    wide = columns.fit(SOME, None)
    assert (wide.columns, wide.above, wide.below) == (SOME, "", [])
    narrow = columns.fit(SOME, 44)
    assert [one.name for one in narrow.columns] == ["model", "family", "top1", "params_m"]
    assert narrow.above == "every row: mode infer"
    assert narrow.below == ["resnet50: crashed: why it crashed"]
    narrowest = columns.fit(SOME, 22)
    assert [one.name for one in narrowest.columns] == ["model", "top1"]
    assert narrowest.widths == [14, 4]
    assert narrowest.below[-1] == "left out at 22 columns: family, params_m"


def test_list_takes_them(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    options = ("list", "cmt*", "--sort", "top1", "--filter", "params_m<30", "--columns", "model,top1")
    assert command(*options).stdout.split()[:4] == ["model", "top1", "cmt_s", "83.5"]
    assert command(*options, "--format", "csv").stdout.splitlines()[:2] == ["model,top1", "cmt_s,83.5"]
    assert json.loads(command(*options, "--format", "json").stdout)[0] == {"model": "cmt_s", "top1": 83.5}
