"""timm's CSV format, out and in."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vitbench.errors import InputError
from vitbench.report import timm
from vitbench.results import journal
from vitbench.results.row import SCHEMA, Row


def make_row(**changes: object) -> Row:
    fields: dict[str, object] = {
        "schema": SCHEMA, "case": "resnet50/eager/infer/bf16/nhwc/224/b64/cuda", "status": "ok", "reason": "",
        "model": "resnet50", "family": "resnet", "impl": "eager", "mode": "infer", "dtype": "bf16", "layout": "nhwc",
        "device": "cuda", "device_name": "NVIDIA H200", "resolution": "224", "batch": 64, "input": "noise",
        "weights": "random", "params_m": 25.557032, "gmacs": 4.0892, "macts": 11.11, "img_per_s": 1234.567,
        "latency_ms_p50": 51.84, "torch": "2.13.0+cu126",
    }  # fmt: skip
    return Row(**{**fields, **changes})  # type: ignore[arg-type]


def test_inference_columns_and_name_are_timms(tmp_path: Path) -> None:
    (path,) = timm.export([make_row()], tmp_path)
    assert path.name == "benchmark-infer-bf16-nhwc-pt213-nvidia-h200-eager.csv"
    (line,) = csv.DictReader(path.open())
    assert line == {
        "model": "resnet50", "infer_img_size": "224", "infer_samples_per_sec": "1234.57", "infer_step_time": "51.84",
        "infer_batch_size": "64", "param_count": "25.56", "infer_gmacs": "4.09", "infer_macts": "11.11",
    }  # fmt: skip


def test_training_has_its_own_columns_and_file(tmp_path: Path) -> None:
    paths = timm.export([make_row(), make_row(mode="train"), make_row(impl="compile")], tmp_path)
    assert len(paths) == 3
    (train,) = (path for path in paths if "train" in path.name)
    assert train.open().readline().strip() == (
        "model,train_samples_per_sec,train_step_time,train_batch_size,train_img_size,param_count"
    )


def test_failed_rows_are_not_exported(tmp_path: Path) -> None:
    assert timm.export([make_row(status="oom", img_per_s=None)], tmp_path) == []


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_an_export_read_back_is_the_baseline_of_its_rows(tmp_path: Path, mode: str) -> None:
    row = make_row(mode=mode)
    (path,) = timm.export([row], tmp_path)
    baseline = timm.read_baseline(path)
    assert baseline.of(row) == pytest.approx(1234.567, abs=0.01)
    assert baseline.of(make_row(mode=mode, impl="compile")) == baseline.of(row), "timm's format has no implementation"
    assert baseline.of(make_row(mode=mode, batch=1)) is None
    assert baseline.of(make_row(mode="train" if mode == "infer" else "infer")) is None


def test_timm_names_with_a_tag_are_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "timm.csv"
    path.write_text(
        "model,infer_img_size,infer_samples_per_sec,infer_step_time,infer_batch_size,param_count,infer_gmacs,infer_macts\n"
        "resnet50.a1_in1k,224,1000.0,64.0,64,25.56,4.11,11.11\n"
    )
    assert timm.read_baseline(path).of(make_row()) == 1000.0


def test_our_csv_as_baseline_is_matched_by_implementation(tmp_path: Path) -> None:
    path = tmp_path / "ours.csv"
    journal.append(path, make_row())
    baseline = timm.read_baseline(path)
    assert baseline.of(make_row()) == pytest.approx(1234.567)
    assert baseline.of(make_row(impl="compile")) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "infer_samples_per_sec"),
        (",".join(timm.INFER) + "\nresnet50,224,fast,1,1,1,1,1\n", "line 2"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        timm.read_baseline(path)
    with pytest.raises(InputError, match="cannot be read"):
        timm.read_baseline(tmp_path / "missing.csv")
