"""Every table in terminals of several widths and in a pipe, as a user sees it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from vitbench import columns
from vitbench.audit import baseline, validate
from vitbench.audit.records import read_csv
from vitbench.audit.show import table as audit_table
from vitbench.bench import max_batch
from vitbench.columns import Column
from vitbench.doctor.check import FAILED, Check
from vitbench.doctor.command import print_check
from vitbench.errors import InputError
from vitbench.kernel_bench.rows import KernelRow
from vitbench.kernel_bench.table import table as kernel_table
from vitbench.predict.validate import table as predicted_errors
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


def moved() -> None:
    found = baseline.compare(*(read_csv(ROOT / f"results/verdict/audit-{name}.csv") for name in ("before", "after")))
    columns.show(baseline.moved_columns(baseline.moved(found)))


def validated() -> None:
    columns.show(validate.table([validate.Pair(FIRST.launch_id, 12.5, FIRST.modelled_us)]))


def predictions() -> None:
    columns.show(predicted_errors([("NVIDIA GeForce RTX 4090", 256, "amp", "eager", 12, 0.041, 0.12, -0.021)]))


def kernels() -> None:
    common = {"kernel": "bias_attention", "case": "cmt_s-a-224", "pass_": "fwd+bwd", "dtype": "bf16", "impls": 2}
    given = dict.fromkeys([field.name for field in fields(KernelRow) if field.default is MISSING], "") | common
    fast = KernelRow(**{**given, "impl": "fused", "status": "ok", "median_us": 81.25, "speedup_over_eager": 1.5})  # type: ignore[arg-type]
    wrong = KernelRow(**{**given, "impl": "compile", "status": "incorrect", "reason": "off by 0.3"})  # type: ignore[arg-type]
    columns.show(kernel_table([fast, wrong]))


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
    "max-batch": (batches, ("1,010", "1,000", "1.010", "crashed at batch 900: worker: killed")),
    "audit": (launches, (f"{FIRST.modelled_us:.2f}", f"{FIRST.floor_us:.2f}")),
    "doctor": (run("doctor"), ("yes",)),
    "predict": (run("predict", "--model", "cmt_ti", "--gpu", "RTX 4090"), ("cmt_ti",)),
    "where the time goes": (run("predict", "--explain", "cmt_ti", "--gpu", "RTX 4090"), ("launches", "GMACs")),
    "what moved in an audit": (moved, ("72.057", "55.529", "-22.9%")),
    "measured beside audited": (validated, ("12.50", f"{FIRST.modelled_us:.2f}")),
    "predictions beside measured": (predictions, ("4.1%", "12.0%", "-2.1%")),
    "kernels": (kernels, ("81.2", "1.50", "incorrect: off by 0.3")),
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


@pytest.mark.parametrize("width", [60, 80, 100, 200, None])
def test_what_doctor_tried_keeps_within_the_terminal(
    width: int | None, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    detail = "RuntimeError: " + "what was wrong with it " * 6 + "in the end"
    check = Check("depthwise_conv2d/irffn-a-nhwc/bwd_dw/bf16", FAILED, 12.5, detail)
    if width is None:
        print_check(check)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
    else:
        lines = terminal(width, lambda: print_check(check))
        assert max(map(len, lines)) <= width
        assert all(line.startswith("    ") for line in lines[1:])
    words = " ".join(lines).split()
    assert words == [check.what, FAILED, "12.50", "s", *detail.split()], "nothing is cut"


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
    many = [columns.Column(f"measured_{number}", []) for number in range(30)]
    with pytest.raises(InputError, match=r"no column 'quux': allowed: measured_0, .*, measured_29$"):
        columns.choose(many, names="quux")


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


#: A command with a table, and columns that it has: one of text, one of numbers, both ways round.
ASKED = {
    ("memory", "--gpu", "list"): ("card", "GB sold"),
    ("predict", "--gpu", "list"): ("card", "W"),
    ("audit", "--card", "list"): ("card", "GHz"),
    ("memory", "--model", "cmt_ti,cmt_xs", "--gpu", "A100 80GB", "--batch", "8", "--mode", "infer"): ("model", "peak"),
    ("predict", "--model", "cmt_ti,cmt_xs", "--gpu", "RTX 4090"): ("model", "img/s"),
    ("compare", str(SWEEP), str(SWEEP)): ("case", "base"),
    ("doctor",): ("topic", "topic"),
}


@pytest.mark.parametrize("command_line", ASKED, ids=" ".join)
def test_every_command_with_a_table_takes_them(
    command_line: tuple[str, ...], command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    name, number = ASKED[command_line]
    lines = command(*command_line, "--columns", f"{number},{name}", "--sort", number).stdout.splitlines()
    header = next(line for line in lines if line.split() == f"{number} {name}".split())
    first, second = lines[lines.index(header) + 1 :][:2]
    turned = command(*command_line, "--columns", f"{number},{name}", "--sort", f"-{number}").stdout.splitlines()
    assert turned[turned.index(header) + 1] != first or first == second
    wrong = command(*command_line, "--filter", f"{name}x<3")
    assert (wrong.returncode, wrong.stderr.splitlines()[-1].startswith("vitbench: --filter")) == (2, True)
    assert name in wrong.stderr


def test_report_takes_them(command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    shutil.copy(SWEEP, tmp_path / "a.csv")  # beside which it draws
    asked = ("--columns", "px,dtype,img/s", "--sort", "-img/s", "--filter", "mode=train,batch<2")
    lines = command("report", str(tmp_path / "a.csv"), *asked).stdout.splitlines()
    assert lines[0].split() == ["px", "dtype", "img/s"]
    assert [line.split()[2] for line in lines[1:5]] == ["1.759", "1.769", "3.792", "3.84"]
    assert lines[5].startswith("fastest")


def test_every_command_with_a_table_has_the_options() -> None:
    from typer.main import get_command

    from vitbench.cli import app

    without = {"certify", "merge"}  # a table a stage in summary.md; one CSV
    for name, one in get_command(app).commands.items():  # type: ignore[attr-defined]
        options = {option for param in one.params for option in param.opts}
        assert ({"--columns", "--sort", "--filter"} <= options) == (name not in without), name


def test_a_column_that_is_not_there_is_told_before_anything_is_measured(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path / "a"))
    cmt = ("--model", "cmt_ti")
    for arguments in (
        ("bench", *cmt, *out),
        ("bench", *cmt, *out, "--executor", "submitit-local"),
        ("memory-curves", *cmt, *out),
        ("memory-curves", *cmt, *out, "--gpu", "A100 80GB"),
        ("memory", *cmt, *out, "--gpu", "A100 80GB"),
        ("predict", *cmt, *out),
        ("fuse-report", "timm:resnet18", *out),
        ("audit",),
        ("audit", "--peers"),
        ("audit", "--baseline", str(ROOT / "results/baseline")),
        ("doctor", "--deep"),
    ):
        for option, text in (("columns", "speed"), ("sort", "-speed"), ("filter", "speed<3")):
            done = command(*arguments, f"--{option}", text)
            assert done.returncode == 2, arguments
            assert "no column 'speed'" in done.stderr or "'-speed' is unknown" in done.stderr, arguments
            assert not done.stdout, arguments
    assert not (tmp_path / "a").exists()


def test_a_limit_that_is_no_number_is_told_before_anything_is_measured() -> None:
    with pytest.raises(InputError, match="'few' is no number"):
        columns.check(SOME, columns.Shown(filter="params_m<few"))


def test_a_quiet_column_is_there_when_it_is_named() -> None:
    same = [*SOME, Column("dtype", ["amp"] * 3, "word", quiet=True)]
    assert "dtype" not in [one.name for one in columns.chosen(same, columns.ALL)]
    asked = columns.Shown(columns="model,dtype", filter="dtype=amp")
    assert [one.name for one in columns.chosen(same, asked)] == ["model", "dtype"]


def test_numbers_with_a_unit_sort_as_numbers() -> None:
    some = [Column("base", ["9.5 ms", "1.2e+02 ms", "80 ms"]), Column("size", ["96x1333", "800x1066", "224x224"])]
    assert of("base", columns.choose(some, sort="base")) == ["1.2e+02 ms", "80 ms", "9.5 ms"]
    assert of("size", columns.choose(some, sort="-size")) == ["96x1333", "224x224", "800x1066"]
