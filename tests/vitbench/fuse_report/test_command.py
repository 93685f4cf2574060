"""`vitbench fuse-report`, as a user runs it."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitbench import cards
from vitbench.fuse_report.command import COLUMNS
from vitbench.predict.ask import ask
from vitbench.predict.forecast import kernel_seconds
from vitbench.predict.setting import Setting
from vitbench.predict.table import KINDS

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def depthwise_macs(model: nn.Module, size: int) -> int:
    """Of the depthwise convolutions, counted while the model runs."""
    counted = []

    def count(conv: Any, _: Any, out: Tensor) -> None:
        counted.append(math.prod(conv.kernel_size) * out.numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.register_forward_hook(count)
    with torch.inference_mode():
        model.eval()(torch.randn(1, 3, size, size))
    return sum(counted)


def test_the_share_is_that_of_what_kernels_compute(command: Command, timm: ModuleType, cache: Path) -> None:
    # Of the second, filters of stride 2 get taps of zero, which are no work of the model's.
    models = "timm:test_convnext,timm:tf_mobilenetv3_small_minimal_100,timm:test_vit"
    done = command("fuse-report", models, "--resolution", "96", "--format", "json")
    assert done.returncode == 0, done.stderr
    *served, unserved = json.loads(done.stdout)
    for row in served:
        model = timm.create_model(row["model"].removeprefix("timm:"))
        convolutions = sum(isinstance(m, nn.Conv2d) and m.groups > 1 for m in model.modules())
        assert (row["served"], row["left"]) == (convolutions, 0)
        want = depthwise_macs(model, 96) / (row["gmacs"] * 1e9)
        assert row["kernel_macs"] == pytest.approx(want, rel=1e-6)
        assert 0 < want < 1
    assert served[0]["served_modules"] == f"{served[0]['served']} Conv2d"
    assert (unserved["served"], unserved["left"], unserved["kernel_macs"]) == (0, 0, 0.0)
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("fuse-report/*/*.json")}
    assert len(kept) == 3
    again = command("fuse-report", models, "--resolution", "96")
    assert again.stdout.splitlines()[-1].startswith("of 3 models fuse serves 2, 1 have nothing")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("fuse-report/*/*.json")} == kept


def test_failures_are_rows_and_the_file_has_them(command: Command, timm: ModuleType, tmp_path: Path) -> None:
    done = command(
        "fuse-report", "timm:test_mambaout,timm:test_vit", "--resolution", "100", "--format", "csv", "--out",
        str(tmp_path), "--columns", "model,reason",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "model,reason"
    assert done.stderr == f"wrote {tmp_path / 'fuse-report.csv'}\n"
    with (tmp_path / "fuse-report.csv").open() as file:
        fine, failed = csv.DictReader(file)
    assert tuple(fine) == COLUMNS
    assert (fine["model"], fine["reason"]) == ("timm:test_mambaout", "")
    assert int(fine["served"]) > 0
    assert "divisible" in failed["reason"]
    assert failed["served"] == failed["gmacs"] == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["swin*"], "such as 'timm:swin*'"),
        (["timm:test_vit", "--format", "xml"], "--format 'xml' is unknown: "),
        (["tim:test_vit"], "timm"),
        (["timm:test_vitt"], "did you mean"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, command: Command, timm: ModuleType) -> None:
    done = command("fuse-report", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line


def test_the_share_of_time_is_that_of_the_modules_served(command: Command, timm: ModuleType) -> None:
    """Depthwise convolutions alone are served: with the casts of autocast, which they make for themselves."""
    model = ("timm:test_convnext", "--resolution", "96", "--format", "json")
    row = json.loads(command("fuse-report", *model, "--gpu", "A100 80GB", "--batch", "64").stdout)[0]
    predicted = ask(Setting("timm:test_convnext", (96, 96)))
    seconds = kernel_seconds(predicted.kernels, cards.find("A100 80GB"), 64)
    of_kind = dict.fromkeys(KINDS, 0.0)
    for (kernel, _), s in zip(predicted.kernels, seconds, strict=True):
        of_kind[kernel.kind] += s / sum(seconds)
    depthwise = sum(share for kind, share in of_kind.items() if kind.startswith("depthwise"))
    assert 0.1 < depthwise < row["time"] < depthwise + of_kind["copy"] + of_kind["elementwise"]
    other = json.loads(command("fuse-report", *model).stdout)[0]
    assert other["time"] != row["time"], "another card and batch"


def test_of_attention_the_time_is_that_of_the_whole_module(command: Command, timm: ModuleType) -> None:
    rows = json.loads(
        command("fuse-report", "timm:test_vit,timm:swin_tiny_patch4_window7_224", "--format", "json").stdout
    )
    assert rows[0]["time"] == 0
    swin = ask(Setting("timm:swin_tiny_patch4_window7_224", (224, 224)))
    seconds = kernel_seconds(swin.kernels, cards.find("RTX 4090"), 256)
    attention = [s for (k, _), s in zip(swin.kernels, seconds, strict=True) if "attention" in k.kind]
    assert sum(attention) / sum(seconds) < rows[1]["time"] < 0.8, "with its linear layers, without the MLPs"
