"""`vitbench predict` and `validate-predictions`, as a user runs them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitbench import cards
from vitbench.predict import anchors, ask, calibration, picture
from vitbench.predict.cost import seconds
from vitbench.predict.forecast import forecast
from vitbench.predict.plan import Row
from vitbench.predict.setting import Setting
from vitbench.predict.table import Table
from vitbench.results import journal
from vitbench.results.row import SCHEMA, TABLE

Command = Callable[..., subprocess.CompletedProcess[str]]
ANCHORS = ("resnet18", "resnet50", "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vgg11")
MODELS = "resnet18,vit_tiny_patch16_224"


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def test_a_row_for_every_model_and_card(command: Command) -> None:
    done = command("predict", "--model", MODELS, "--gpu", "RTX 4090,H100 SXM", "--batch", "64,256", "--format", "csv")
    found = rows(done)
    assert len(found) == 2 * 2 * 2
    speeds = [float(row["img_per_s"]) for row in found]
    assert speeds == sorted(speeds, reverse=True)
    for row in found:
        shares = [float(row[name]) for name in ("convolutions", "products", "attention", "memory_bound")]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert float(row["low"]) <= float(row["img_per_s"]) <= float(row["high"])
        assert float(row["ms"]) == pytest.approx(1e3 * int(row["batch"]) / float(row["img_per_s"]), rel=1e-4)
        assert row["fits"] == "True"
        assert ("HBM" in row["note"]) == (row["gpu"] == "H100 SXM")
        assert bool(row["top1"]) == bool(row["top1_source"])
    assert "median error" in done.stderr
    assert "not latency at batch 1" in done.stderr
    by_key = {(row["model"], row["gpu"], row["batch"]): float(row["img_per_s"]) for row in found}
    assert by_key["resnet18", "H100 SXM", "256"] > 1.5 * by_key["resnet18", "RTX 4090", "256"]


def test_tables_filters_and_sorting(command: Command) -> None:
    both = json.loads(command("predict", "--model", MODELS, "--format", "json", "--sort", "model").stdout)
    slow, fast = sorted(both, key=lambda row: row["img_per_s"])
    limit = str((slow["img_per_s"] + fast["img_per_s"]) / 2)
    (left,) = json.loads(command("predict", "--model", MODELS, "--format", "json", "--min-img-per-s", limit).stdout)
    assert left["model"] == fast["model"]
    low, high = sorted(both, key=lambda row: row["memory_gib"])
    between = str((low["memory_gib"] + high["memory_gib"]) / 2)
    (left,) = json.loads(command("predict", "--model", MODELS, "--format", "json", "--max-mem", between).stdout)
    assert left["model"] == low["model"]
    assert json.loads(command("predict", "--model", MODELS, "--format", "json", "--min-top1", "99").stdout) == []
    table = command("predict", "--model", MODELS).stdout
    assert "80 % within" in table
    assert "RTX 4090" in command("predict", "--gpu", "list").stdout


def test_small_batches_and_other_dtypes_say_that_they_were_not_validated(command: Command) -> None:
    (row,) = rows(command("predict", "--model", "resnet18", "--batch", "1", "--dtype", "fp32", "--format", "csv"))
    assert "below batch 32" in row["note"]
    assert "fp32 was not validated" in row["note"]


def test_compiled_inference_is_faster_and_has_errors_of_its_own(command: Command) -> None:
    done = command("predict", "--model", "resnet18", "--impl", "eager,compile", "--format", "csv")
    found = {row["impl"]: row for row in rows(done)}
    assert float(found["compile"]["img_per_s"]) > 1.1 * float(found["eager"]["img_per_s"])
    assert float(found["compile"]["gmacs"]) == pytest.approx(float(found["eager"]["gmacs"]), rel=1e-5)
    assert "memory is that of eager inference" in found["compile"]["note"]
    assert found["eager"]["note"] == ""
    for said in ("of eager inference at large batches", "through torch.compile at large batches"):
        assert said in done.stderr
    text = command("predict", "--explain", "resnet18").stdout
    (line,) = (line for line in text.splitlines() if line.startswith("compile:"))
    assert line == f"compile: {float(found['compile']['img_per_s']):,.0f} images/s ({ratio(found):.2f} x)"
    other = command("predict", "--explain", "resnet18", "--impl", "compile").stdout
    assert f"eager: {float(found['eager']['img_per_s']):,.0f} images/s" in other
    assert "batch norm" not in other, "fused into what is elementwise"


def ratio(found: dict[str, dict[str, str]]) -> float:
    return float(found["compile"]["img_per_s"]) / float(found["eager"]["img_per_s"])


def test_a_size_that_a_model_cannot_take_is_a_row(command: Command) -> None:
    done = command("predict", "--model", MODELS, "--resolution", "100", "--format", "csv")
    assert done.returncode == 1
    found = {row["model"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert found["vit_tiny_patch16_224"]["reason"].startswith("vit_tiny_patch16_224 takes multiples of 16 px")
    assert float(found["resnet18"]["img_per_s"]) > 0


def test_explained(command: Command) -> None:
    text = command("predict", "--explain", "resnet18", "--batch", "256").stdout
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "images/s" in lines["resnet18"]
    assert lines["convolution"].split()[1] == "19", "all but the first"
    total = sum(float(line.split()[-1].rstrip("%")) for line in text.splitlines() if line.endswith("%"))
    assert total == pytest.approx(100, abs=0.5)
    assert lines["nhwc:"].endswith("x)")
    assert "fused: at most" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "RTX 4091"], "no card is called 'RTX 4091'; did you mean RTX 4090"),
        (["--model", "resnet19"], "unknown model 'resnet19'"),
        (["--batch", "0"], "batch '0' is not a positive whole number"),
        (["--dtype", "int8"], "dtype 'int8' is unknown"),
        (["--layout", "chwn"], "layout 'chwn' is unknown"),
        (["--sort", "size"], "--sort 'size' is unknown"),
        (["--format", "xml"], "--format 'xml' is unknown"),
        (["--min-top1", "820"], "--min-top1 820 is more than 100 percent"),
        (["--max-mem", "-1"], "--max-mem -1 is not a positive number"),
        (["--anchors", "nowhere.csv"], "--anchors nowhere.csv does not exist"),
        (["--explain", "nothing"], "unknown model 'nothing'"),
        (["--explain", "resnet18", "--format", "csv"], "--explain prints a table: leave out --format and --out"),
        (["--impl", "sdpa"], "impl 'sdpa' is unknown"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, command: Command) -> None:
    done = command("predict", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def anchored(path: Path, matrix: float, bandwidth: float) -> None:
    """timm's CSV of a card that sustains so much of what is assumed."""
    device = calibration.fitted().device(cards.find("RTX 4090")).sustained(matrix, bandwidth)
    lines = ["model,infer_img_size,infer_batch_size,infer_samples_per_sec"]
    for model in ANCHORS:
        answer = ask.ask(Setting(f"timm:{model}", (224, 224)))
        table = Table.of([answer.kernels])
        time = table.sums(seconds(table, calibration.fitted().parameters, device, np.array([256.0])))[0]
        lines.append(f"{model},224,256.0,{256 / time:.2f}")
    path.write_text("\n".join(lines) + "\n")


def test_anchors_find_what_the_card_sustains(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "anchors.csv"
    anchored(path, 0.7, 0.9)
    card = cards.find("RTX 4090")
    moved = anchors.factors(card, anchors.read(path, card, "amp", "nchw"))
    assert moved[:2] == pytest.approx((0.7, 0.9), rel=0.05)
    arguments = ("predict", "--model", "timm:resnet18", "--format", "csv")
    (plain,), (corrected,) = rows(command(*arguments)), rows(done := command(*arguments, "--anchors", str(path)))
    assert "6 anchors of 3 families: RTX 4090 sustains 0.7" in done.stderr
    assert "8 of different families are advised" in done.stderr
    measured = float(path.read_text().splitlines()[1].split(",")[-1])
    assert float(corrected["img_per_s"]) == pytest.approx(measured, rel=0.02)
    assert float(plain["img_per_s"]) > 1.1 * measured
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    refused = command(*arguments, "--anchors", str(tmp_path / "other.csv"))
    assert refused.returncode == 2
    assert "neither a CSV of vitbench nor one of timm" in refused.stderr


def test_anchors_of_as_many_families_as_were_judged_narrow_the_interval() -> None:
    """Of a card that is measured nowhere; of a fitted one the statistics of its own stay."""
    setting = Setting("resnet18", (224, 224), "nchw", "amp")
    answer = ask.ask(setting)

    def width(gpu: str, families: int) -> float:
        made = forecast(answer, setting, cards.find(gpu), 256, calibration.Anchored(0.9, 1.1, families))
        return float(np.log(made.high / made.low))

    anchored = [one for one in calibration.errors() if (one.held_out, one.rare) == ("anchors", "few")]
    assert width("RTX 5080", 8) == pytest.approx(2 * max(max(-one.low, one.high) for one in anchored))
    assert width("RTX 5080", 8) < 0.6 * width("RTX 5080", 7)
    assert width("RTX 4090", 8) == width("RTX 4090", 0) < width("RTX 5080", 8)


def bench_row(**given: Any) -> Any:
    cells: dict[str, Any] = {
        "schema": SCHEMA, "case": "m/eager/infer/amp/nchw/224/b64/cuda", "status": "ok", "reason": "", "model": "m",
        "family": "m", "impl": "eager", "mode": "infer", "dtype": "amp", "layout": "nchw", "device": "cuda",
        "device_name": "NVIDIA GeForce RTX 4090", "resolution": "224", "batch": 64,
    }  # fmt: skip
    return TABLE.of(**{**cells, **given})


def test_validated_against_a_sweep(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "a.csv"
    for ratio in (1.0, 1.1, 0.9):
        journal.append(path, bench_row(img_per_s=100.0, predicted_img_per_s=100.0 * ratio))
    journal.append(path, bench_row(img_per_s=100.0))
    done = command("validate-predictions", str(path))
    assert done.returncode == 0, done.stderr
    cells = done.stdout.splitlines()[1].split()
    assert cells[-4] == "3"
    assert cells[-3] == f"{np.log(1.1):.1%}"
    bare = tmp_path / "b.csv"
    journal.append(bare, bench_row(img_per_s=100.0))
    refused = command("validate-predictions", str(bare))
    assert refused.returncode == 2
    assert "has no row with a prediction" in refused.stderr


def test_names_of_the_front_do_not_lie_on_each_other() -> None:
    """Of four models on the front, two of which are as accurate within a few pixels; the fifth is beaten."""
    told = [("a", 90.0, 100), ("b_224", 85.0, 200), ("c", 84.9, 300), ("d", 70.0, 400), ("e", 60.0, 50)]
    rows = [
        Row(model, "", "RTX 4090", "224", 256, "amp", "nchw", img_per_s=rate, top1=top1) for model, top1, rate in told
    ]
    drawn = picture.chart(rows).to_dict()
    names = drawn["vconcat"][0]["layer"][3]
    assert names["encoding"]["text"]["field"] == "name"
    assert {row["name"] for row in drawn["datasets"][names["data"]["name"]]} == {"a 224", "b_224", "d 224"}


def test_panels_of_the_page_are_as_wide_as_the_screen_and_have_room_for_the_fastest_name() -> None:
    rows = [
        Row(model, "", "RTX 4090", "224", 256, "amp", "nchw", img_per_s=rate, top1=top1)
        for model, rate, top1 in (("a", 100.0, 90.0), ("b", 10_000.0, 80.0))
    ]
    (panel,) = (one.to_dict() for one in picture.panels(rows, "container"))
    assert panel["width"] == "container"
    low, high = panel["layer"][0]["encoding"]["x"]["scale"]["domain"]
    assert 50 < low < 100
    assert 15_000 < high < 40_000
    assert picture.panels([replace(rows[0], top1=None)], "container") == []
