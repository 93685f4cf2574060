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

from vitbench.fuse_report.command import COLUMNS

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
