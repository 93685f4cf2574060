"""`vitbench report RESULTS.csv... --out DIR` as users call it: what it writes, says and refuses."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.vitbench.report import problems

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_page_pictures_and_summary_with_verdicts(command: Command, tmp_path: Path) -> None:
    new = [problems.row(batch=batch, latency_ms_p50=2.0 * batch, samples=400) for batch in (1, 4)]
    hostile = problems.row(model="a|b <i>", status="error", reason="[x](javascript:1) `" + problems.SCRIPT)
    old = [row | {"latency_ms_p50": 1.5 * row["batch"], "latency_ms_ci_low": 1.49 * row["batch"],
                  "latency_ms_ci_high": 1.51 * row["batch"], "torch": "2.12.0"} for row in new]  # fmt: skip
    files = [problems.write(tmp_path / f"{name}.csv", rows) for name, rows in (("new", [*new, hostile]), ("old", old))]
    out = tmp_path / "report"
    done = command("report", str(files[0]), "--out", str(out), "--against", str(files[1]))
    assert (done.returncode, done.stderr) == (0, "")
    assert "slower: 2 cases compared" in done.stdout
    assert "torch was 2.12.0, is 2.13.0" in done.stdout
    text = (out / "summary.md").read_text()
    assert re.search(r"\| slower \| resnet50/eager/infer/fp32/nchw/224/b1/cuda \| time \|.*\+33\.3%", text)
    assert r"\[x\](javascript:1) \`&lt;/script&gt;" in text
    assert r"a\|b &lt;i&gt;" in text
    page = (out / "index.html").read_text()
    assert "slower: 2 cases compared" in page
    assert problems.SCRIPT not in page
    pictures = re.findall(r"\]\((\S+\.png)\)", text)
    assert len(pictures) > 5
    for name in pictures:
        with Image.open(out / name) as picture:
            assert picture.width > 600
        assert (out / name).with_suffix(".svg").read_text().startswith("<svg")
    written = {path.name for path in out.iterdir()}
    assert written == {"index.html", "summary.md", *pictures, *(name[:-3] + "svg" for name in pictures)}


def test_a_page_of_nothing_to_compare_says_so(command: Command, tmp_path: Path) -> None:
    base = problems.write(tmp_path / "base.csv", [problems.row(model="resnet18", latency_ms_p50=1.0)])
    new = problems.write(tmp_path / "new.csv", [problems.row(status="oom", reason="CUDA out of memory")])
    done = command("report", str(new), "--out", str(tmp_path / "r"), "--against", str(base))
    assert "no file shares a case with" in done.stdout
    assert (
        "| resnet50/eager/infer/fp32/nchw/224/b1/cuda | oom | CUDA out of memory |"
        in (tmp_path / "r/summary.md").read_text()
    )


def test_bad_input_is_one_line(command: Command, tmp_path: Path) -> None:
    good = str(problems.write(tmp_path / "a.csv", problems.sweep()))
    other = tmp_path / "b.csv"
    other.write_text("name,age\nx,3\n")
    tries = {
        (good, str(other)): "say where with --out DIR",
        (good, "--against", good): "say where with --out DIR",
        (good, "--out", str(other)): "is a file: name a folder",
        (good, "--out", str(tmp_path), "--baseline", good): "leave out --out",
        (str(other), "--out", str(tmp_path)): "no row to report",
        (good, "--out", str(tmp_path), "--against", str(tmp_path / "none.csv")): "does not exist",
    }
    for arguments, says in tries.items():
        done = command("report", *arguments)
        assert done.returncode == 2
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


def test_data_in_the_page_are_the_rows(command: Command, tmp_path: Path) -> None:
    file = problems.write(tmp_path / "a.csv", problems.sweep())
    assert command("report", str(file), "--out", str(tmp_path / "r")).returncode == 0
    page = (tmp_path / "r" / "index.html").read_text()
    found = re.search(r"<script id=data type=application/json>(.*?)</script>", page)
    assert found
    [kind] = [kind for kind in json.loads(found[1])["kinds"] if kind["title"] == "Measured models"]
    columns = {column["name"]: column for column in kind["columns"]}
    assert columns["latency_ms_p50"]["values"] == [row["latency_ms_p50"] for row in problems.sweep()]
    models = columns["model"]
    assert [models["texts"][code] for code in models["values"]] == [row["model"] for row in problems.sweep()]
