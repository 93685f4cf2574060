"""timm's CSV format, out and in."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vitbench.fuzzing import understood
from vitbench.errors import InputError
from vitbench.report import timm
from vitbench.results import journal
from vitbench.results.row import SCHEMA, TABLE, Row

pytestmark = pytest.mark.fast


def make_row(**changes: object) -> Row:
    fields: dict[str, object] = {
        "schema": SCHEMA, "case": "resnet50/eager/infer/bf16/nhwc/224/b64/cuda", "status": "ok", "reason": "",
        "model": "resnet50", "family": "resnet", "impl": "eager", "mode": "infer", "dtype": "bf16", "layout": "nhwc",
        "device": "cuda", "device_name": "NVIDIA H200", "resolution": "224", "batch": 64, "input": "noise",
        "weights": "random", "params_m": 25.557032, "gmacs": 4.0892, "macts": 11.11, "img_per_s": 1234.567,
        "latency_ms_p50": 51.84, "torch": "2.13.0+cu126",
    }  # fmt: skip
    return TABLE.of(**{**fields, **changes})


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


BOTH = "model,infer_samples_per_sec,infer_step_time,infer_batch_size,infer_img_size,"
BOTH += "train_samples_per_sec,train_step_time,train_batch_size,train_img_size,param_count\n"


@pytest.mark.parametrize("model", ["timm:test_vit.r160_in1k", "timm:test_vit", "test_vit"])
def test_a_model_of_timm_goes_by_timms_name_both_ways(tmp_path: Path, model: str) -> None:
    row = make_row(model=model, resolution="160", batch=8)
    (path,) = timm.export([row], tmp_path)
    (line,) = csv.DictReader(path.open())
    assert line["model"] == model.removeprefix("timm:")
    assert timm.read_baseline(path).of(row) == 1234.57
    other = tmp_path / "other.csv"
    other.write_text(",".join(timm.INFER) + "\ntest_vit.other_tag,160,700.5,1,8,0.37,0.04,0.48\n")
    assert timm.read_baseline(other).of(row) == 700.5
    assert timm.read_baseline(other).of(make_row(model="torchvision:test_vit", resolution="160", batch=8)) is None


def test_a_tag_is_told_apart_where_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "timm.csv"
    lines = ["resnet50.a1_in1k,224,900,1,64,1,1,1", "resnet50.tv_in1k,224,1000,1,64,1,1,1"]
    path.write_text("\n".join([",".join(timm.INFER), *lines]))
    baseline = timm.read_baseline(path)
    assert [baseline.of(make_row(model=f"timm:resnet50{tag}")) for tag in ("", ".tv_in1k", ".a1_in1k")] == [
        900, 1000, 900,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",64,", ",64.0,").replace("224,", "224.0,"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text.replace("\n", "\n,,,,,,,,,\n  \n"),
        lambda text: text.replace("\n", "\r\n"),
    ],
)
def test_what_spreadsheets_do_to_a_file_is_read(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = tmp_path / "both.csv"
    path.write_bytes(change(BOTH + "resnet50,2500,102,64,224,800.5,320,64,224,25.56\nvgg,9,1,64,224,,,,,1\n").encode())
    baseline = timm.read_baseline(path)
    assert baseline.of(make_row()) == 2500
    assert baseline.of(make_row(mode="train")) == 800.5
    assert baseline.of(make_row(model="vgg")) == 9
    assert baseline.of(make_row(model="vgg", mode="train")) is None


def test_accuracies_go_by_model_and_resolution(tmp_path: Path) -> None:
    path = tmp_path / "results-imagenet.csv"
    path.write_text("model,img_size,top1,top1_err,top5\nresnet50.a1_in1k,288,81.2,18.8,95\nresnet50,224,80.1,19.9,94\n")
    baseline = timm.read_baseline(path)
    assert [baseline.top1_of(make_row(resolution=px)) for px in ("224", "288", "320")] == [80.1, 81.2, None]
    assert baseline.of(make_row()) is None
    assert baseline.unmatched([make_row()]) == ""


def test_what_the_file_does_not_have_is_said(tmp_path: Path) -> None:
    path = tmp_path / "timm.csv"
    path.write_text(",".join(timm.INFER) + "\nresnet50,224,900,1,256,1,1,1\n")
    baseline = timm.read_baseline(path)
    told = baseline.unmatched([make_row(batch=256), make_row(), make_row(model="timm:vgg11"), make_row(img_per_s=None)])
    assert told.startswith("2 of 3 rows have no lines in ")
    assert told.endswith("such as resnet50 infer at 224 px and batch 64; its lines are infer 224 256")
    assert baseline.unmatched([make_row(batch=256)]) == ""


def test_our_csv_as_baseline_is_matched_by_implementation(tmp_path: Path) -> None:
    path = tmp_path / "ours.csv"
    journal.append(path, make_row())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n")  # a spreadsheet's mark, and an empty line
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


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example writes anew."""
    return tmp_path_factory.mktemp("fuzz") / "timm.csv"


NAMES = ("model", *timm.INFER, *timm.TRAIN, "img_size", "top1", "else")
CELLS = ("resnet50.a1_in1k", "224", "64", "64.0", "1e3", "nan", "inf", "-1", "", '"', "\r", "\x00", "1_0", "9" * 5000)
cells = st.lists(st.sampled_from(CELLS) | st.text(max_size=5), max_size=12).map(",".join)


@pytest.mark.fuzz
@settings(deadline=None)
@given(
    st.lists(st.sampled_from(NAMES), max_size=12).map(",".join) | st.sampled_from([BOTH.strip(), ",".join(timm.INFER)]),
    st.lists(cells, max_size=4).map("\n".join),
    st.binary(max_size=3),
)
def test_any_file_is_a_baseline_or_refused_in_one_line(scratch: Path, header: str, body: str, junk: bytes) -> None:
    scratch.write_bytes(f"{header}\n{body}".encode(errors="replace") + junk)
    if baseline := understood(timm.read_baseline, scratch):
        numbers = [*baseline.img_per_s.values(), *baseline.top1.values()]
        assert all(0 <= number < math.inf for number in numbers)
