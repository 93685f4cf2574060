"""The command as a user types it: what it prints, what it exits with, what it does not import."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitbench.catalog import catalog
from vitbench.models import create_model
from vitbench.results import journal

Command = Callable[..., subprocess.CompletedProcess[str]]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitbench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def complaint(command: Command) -> Callable[..., str]:
    """The one line that bad input gives."""

    def said(*arguments: str) -> str:
        done = command(*arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        return line

    return said


@pytest.mark.parametrize(
    "arguments", [["--help"], ["bench", "--help"], ["list"], ["list", "--format", "json"]], ids=str
)
def test_no_torch_is_imported(arguments: list[str]) -> None:
    program = (
        f"import sys; sys.argv = ['vitbench', *{arguments!r}]\n"
        "from vitbench import cli\n"
        "try: cli.main()\n"
        "finally: print('torch' in sys.modules, 'pandas' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "False False\n"
    assert done.returncode == 0


def test_help_reads_like_a_manual(command: Command) -> None:
    text = command("--help").stdout
    for word in ("bench", "list", "doctor", "memory-curves", "report", "Exit code", "--dry-run"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80, "examples fit a narrow terminal"


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["bench", "--modle", "x"], "vitbench bench --help"),
        (["predict", "--explain"], "vitbench predict --help"),
        (["gpu"], "vitbench --help"),
        (["--gpu"], "vitbench --help"),
    ],
    ids=str,
)
def test_what_the_parser_refuses_says_where_to_look(
    complaint: Callable[..., str], arguments: list[str], where: str
) -> None:
    assert f"; `{where}` " in complaint(*arguments)


def test_every_command_says_in_60_characters_what_it_does(command: Command) -> None:
    from typer.main import get_command

    from vitbench.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) > 8
    for name, one in commands.items():
        short = one.get_short_help_str(1000)
        assert 20 < len(short) <= 60, (name, short)
    assert "..." not in command("--help").stdout.partition("Commands:")[2]


def test_without_a_word_the_help_is_printed(command: Command) -> None:
    assert (command().returncode, command().stdout) == (0, command("--help").stdout)


def test_version(command: Command) -> None:
    from vitbench import __version__

    done = command("--version")
    assert (done.returncode, done.stdout) == (0, f"vitbench {__version__}\n")


@pytest.mark.parametrize(
    ("words", "completed"),
    [("vitbench me", ["merge", "memory-curves", "memory"]), ("vitbench list --f", ["--format", "--filter"])],
)
def test_the_shell_completes(words: str, completed: list[str]) -> None:
    environment = {
        "_VITBENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")),
    }  # fmt: skip
    assert run(env={**os.environ, **environment}).stdout.split() == completed


def test_list_csv_and_json_say_the_same(command: Command) -> None:
    rows = list(csv.DictReader(io.StringIO(command("list", "cmt_*", "--format", "csv").stdout)))
    records = json.loads(command("list", "cmt_*", "--format", "json").stdout)
    assert [row["model"] for row in rows] == [name for name in catalog() if name.startswith("cmt_")]
    for row, record in zip(rows, records, strict=True):
        assert {name: "" if value is None else str(value) for name, value in record.items()} == row
    assert {"model", "family", "params_m", "gmacs", "resolution", "top1", "source"} <= set(rows[0])


def test_list_csv_is_the_committed_one_and_quick_from_the_first_time(tmp_path: Path) -> None:
    # Time of the processor, so that a busy machine does not count; an empty cache makes the first time a first time.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for limit_s in (10, 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        listed = run("list", "--format", "csv", env=environment).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < limit_s
    assert listed == Path(__file__).with_name("list.csv").read_text(encoding="utf-8")


def test_list_table_shows_every_name_in_full(command: Command) -> None:
    text = command("list").stdout
    assert all(name in text for name in catalog())


def test_doctor_says_why_something_is_missing(command: Command) -> None:
    done = command("doctor")
    assert done.returncode == 0
    for topic in (
        "torch",
        "triton",
        "cpu energy",
        "free memory",
        "C++ compiler",
        "gpu" if "NO" in done.stdout else "cuda:0",
    ):
        assert topic in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench", "--model", "cmt_x"], "cmt_xs"),
        (["bench", "--model", ""], "no model given"),
        (["bench", "--model", "vit_base_patch16_224", "--resolution", "225"], "224, 240"),
        (["bench", "--batch", "0"], "batch '0'"),
        (["bench", "--impl", "fast"], "allowed: eager, sdpa"),
        (["bench", "--graphs", "--device", "cpu"], "--graphs records work of an NVIDIA GPU"),
        (["bench", "--dtype", "bf61"], "bf16"),
        (["bench", "--mode", "infre"], "infer"),
        (["bench", "--device", "tpu"], "allowed: cpu, cuda, cuda:N"),
        (["bench", "--time-limit", "0"], "above zero"),
        (["bench", "--time-limit", "soon"], "--time-limit"),
        (["bench", "--modle", "cmt_s"], "--model"),
        (["bench", "--export", "xlsx"], "allowed: timm"),
        (["bench", "--baseline", "/nowhere.csv"], "cannot be read"),
        (["bench", "--images", "/nowhere"], "not a folder"),
        (["bench", "--weights", "/nowhere.safetensors"], "one model"),
        (["bench", "--model", "resnet18", "--weights", "/nowhere.safetensors"], "does not exist"),
        (["report", "/nowhere.csv"], "does not exist"),
        (["list", "--format", "yaml"], "allowed: table, csv, json"),
        (["list", "vit_basee*"], "vit_base"),
        (["bnech"], "bench"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(complaint: Callable[..., str], arguments: list[str], says: str) -> None:
    assert says in complaint(*arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_bad_input(complaint: Callable[..., str]) -> None:
    assert "--device cpu" in complaint("bench", "--device", "cuda")


SMALL = (
    "--model",
    "resnet18",
    "--resolution",
    "32",
    "--batch",
    "1",
    "--dtype",
    "fp32",
    "--mode",
    "infer",
    "--device",
    "cpu",
)


def test_bad_files_are_one_line_and_lose_nothing(complaint: Callable[..., str], tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"\x00" * 64)
    assert "not a readable .safetensors" in complaint("bench", *SMALL, "--weights", str(weights))
    torch.save({"a": torch.ones(1)}, weights)
    assert "not a readable .safetensors" in complaint("bench", *SMALL, "--weights", str(weights))
    save_file({"a": torch.ones(1)}, weights)
    assert "is not resnet18" in complaint("bench", *SMALL, "--weights", str(weights))
    other = tmp_path / "other.csv"
    other.write_text("model,speed\nresnet18,1\n")
    assert "schema" in complaint("bench", *SMALL, "--out", str(other))
    assert other.read_text() == "model,speed\nresnet18,1\n"
    assert "not a folder" in complaint("bench", *SMALL, "--images", str(weights))
    assert "--out" in complaint("bench", *SMALL, "--out", str(weights / "a.csv"))


def test_dry_run_prints_what_would_run_and_writes_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command(
        "bench", "--model", "cmt_ti,resnet18", "--batch", "1,2", "--impl", "eager,compile", "--dtype", "fp32",
        "--resolution", "native", "--mode", "train", "--dry-run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if "/train/" in line]
    assert [line[0] for line in lines][4:6] == [
        "resnet18/eager/train/fp32/nchw/224/b1/cpu",
        "resnet18/compile/train/fp32/nchw/224/b1/cpu",
    ]
    assert lines[4][1:3] == ["11.689512", "1.8141"]
    memory = {line[0]: float(line[3].replace(",", "")) for line in lines if "/eager/" in line[0]}
    assert len(memory) == 4
    assert all(value > 50 for value in memory.values())
    assert len(lines[1]) == 3, "a compiled model's memory is not predicted"
    assert list(tmp_path.iterdir()) == []


#: A plan whose second case never ends, inside a callback of a tensor's end, where exceptions are ignored.
IN_A_CALLBACK = """
import sys, weakref
from vitbench import cli
from vitbench.bench import predict
count = predict.count
def endless(model, *rest):
    def callback(_):
        while True: pass
    while model != "resnet18":
        one = set()
        known = weakref.ref(one, callback)
        print("in the callback", flush=True)
        del one
    return count(model, *rest)
predict.count = endless
sys.argv = ["vitbench", "bench", "--model", "resnet18,resnet34", "--dry-run", "--device", "cpu",
            "--resolution", "64", "--batch", "1"]
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_dry_run_ends_when_it_is_told_to_and_keeps_its_lines(number: signal.Signals) -> None:
    plan = subprocess.Popen([sys.executable, "-c", IN_A_CALLBACK], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert plan.stdout is not None
        lines = []
        while not lines or lines[-1] != b"in the callback\n":
            lines.append(plan.stdout.readline())
            assert lines[-1], "it ended by itself"
        plan.send_signal(number)
        after, complaints = plan.communicate(timeout=60)
        assert (plan.returncode, after, complaints) == (130, b"", b"")
        assert any(line.startswith(b"resnet18/eager/infer/fp32/nchw/64/b1/cpu ") for line in lines)
    finally:
        plan.kill()


@pytest.mark.usefixtures("served")
def test_a_sweep_with_weights_and_pictures_writes_table_csv_and_drawings(command: Command, tmp_path: Path) -> None:
    from PIL import Image

    model = create_model("resnet18", resolution=32)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 48), (200, 30, 90)).save(tmp_path / "photos" / "a.jpg")
    out = tmp_path / "out" / "a.csv"
    done = run(
        "bench", *SMALL, "--batch", "1,2", "--impl", "eager,sdpa", "--min-time", "0.05", "--max-time", "0.1",
        "--weights", str(tmp_path / "w.safetensors"), "--images", str(tmp_path / "photos"), "--out", str(out),
        "--export", "timm",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = journal.read(out)
    assert [row.status for row in rows] == ["ok"] * 4
    assert {row.setup.weights for row in rows} == {"w.safetensors"}
    assert {row.setup.input for row in rows} == {f"images in {tmp_path / 'photos'}"}
    written = sorted(path.suffix for path in out.parent.iterdir() if not path.name.startswith("."))
    assert written == [".csv", ".csv", ".csv", ".html", ".jsonl", ".png", ".svg"]
    assert "[4/4]" in done.stdout
    assert "x eager" in done.stdout
    assert "\x1b" not in done.stdout, "plain lines when the output is no terminal"
    for path in out.parent.glob("a.*"):
        assert str(path) in done.stdout
    again = command("report", str(out), "--baseline", str(out))
    assert "x baseline" in again.stdout
    assert again.stdout.count("1.00") >= 4
