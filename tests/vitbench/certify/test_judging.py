"""What a GPU's numbers would be called: the judgements of each stage on rows that are made up."""

from __future__ import annotations

import csv
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitbench.audit.records import COLUMNS, write_csv
from vitbench.audit.records import Row as AuditRow
from vitbench.bench.plan import Case
from vitbench.bench.sweep import row_of
from vitbench.certify import kernels, memory, models, power, prediction
from vitbench.certify.stage import FAIL, NOT_RUN, PASS, Context, Line
from vitbench.results import journal
from vitbench.results.row import TABLE, Environment, Found, Setup


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path, "cuda")


def write(context: Context, file: str, case: Case, **known: Any) -> None:
    blank = row_of(case, Found(), Environment(device_name="a GPU"), Setup(), "")
    journal.append(context.out / file, TABLE.of(**{**TABLE.values(blank), **known}))


def aimed(context: Context) -> Line:
    return next(line for line in models.STAGE.judge(context) if line.what.startswith("cmt_s infer, bf16"))


@pytest.mark.parametrize(("fused", "both", "verdict", "told"), [
    (1499.0, None, FAIL, "1.50x by fused: compile 1,000 img/s, fused 1,499 img/s"),
    (1500.0, None, PASS, "1.50x by fused"),
    (900.0, 1600.0, PASS, "1.60x by fused+compile"),
])  # fmt: skip
def test_the_aim_is_the_best_fused_over_compile(
    context: Context, fused: float, both: float | None, verdict: str, told: str
) -> None:
    case = Case("cmt_s", "compile", "infer", "bf16", "nhwc", (224, 224), 64, "cuda")
    assert aimed(context).verdict == NOT_RUN
    write(context, "models.csv", case, img_per_s=1000.0)
    assert aimed(context).detail == "cmt_s/fused/infer/bf16/nhwc/224/b64/cuda not reached yet"
    write(context, "models.csv", replace(case, impl="fused"), img_per_s=fused)
    if both:
        write(context, "models.csv", replace(case, impl="fused+compile"), img_per_s=both)
    line = aimed(context)
    assert line.verdict == verdict
    assert line.detail.startswith(told)


def test_a_wrong_implementation_has_no_aim_and_fails_its_model(context: Context) -> None:
    case = Case("cmt_s", "compile", "infer", "bf16", "nhwc", (224, 224), 64, "cuda")
    write(context, "models.csv", case, img_per_s=1000.0)
    write(context, "models.csv", replace(case, impl="fused"), status="incorrect", reason="differs from eager by 1")
    assert (aimed(context).verdict, "incorrect: differs" in aimed(context).detail) == (NOT_RUN, True)
    line = next(line for line in models.STAGE.judge(context) if line.what.startswith("cmt_s: every"))
    assert line.verdict == FAIL
    assert "2 of 84 cases: 1 ok, 1 incorrect; cmt_s/fused/infer" in line.detail


def all_of(context: Context, model: str, **unsupported: str) -> Line:
    """The line of a model whose cases are all ok, but for implementations that are unsupported for a reason."""
    for case in (case for case in models.cases(context) if case.model == model):
        why = unsupported.get(case.impl)
        write(context, "models.csv", case, status="unsupported" if why else "ok", reason=why or "")
    return next(line for line in models.STAGE.judge(context) if line.what.startswith(f"{model}: every"))


@pytest.mark.parametrize(("model", "refused", "verdict"), [
    ("cmt_s", {}, PASS),
    ("cmt_s", {"flex": "no such operator"}, PASS),
    ("cmt_s", {"fused": "no kernel image"}, FAIL),
    ("cmt_s", {"fused+compile": "no kernel image"}, FAIL),
    ("timm:swin_tiny_patch4_window7_224", {"fused": "no fused kernel serves timm:swin: nothing"}, FAIL),
    ("resnet50", {"fused": "no fused kernel serves resnet50: it has none"}, PASS),
])  # fmt: skip
def test_on_a_gpu_fused_must_run_where_a_kernel_serves(
    timm: object, context: Context, model: str, refused: dict[str, str], verdict: str
) -> None:
    line = all_of(context, model, **refused)
    assert line.verdict == verdict
    if verdict == FAIL:
        ((impl, why),) = refused.items()
        assert f"{model}/{impl}/infer/bf16" in line.detail
        assert why in line.detail


def test_without_a_gpu_fused_was_not_run(context: Context) -> None:
    line = all_of(replace(context, device="cpu"), "convit_tiny", fused="fused kernels need an NVIDIA GPU")
    assert line.verdict == NOT_RUN
    assert line.detail.endswith("4 ok, 2 unsupported; fused was not run: fused kernels need an NVIDIA GPU")


@pytest.mark.parametrize(("measured", "verdict"), [(1049.0, PASS), (1060.0, FAIL), (940.0, FAIL)])
def test_memory_is_held_to_five_percent(context: Context, measured: float, verdict: str) -> None:
    curve = memory.curve_cases(context)[0]
    write(context, "memory.csv", curve[0], predicted_mem_mib=100.0, peak_mem_mib=100.0)
    write(context, "memory.csv", curve[1], predicted_mem_mib=1000.0, peak_mem_mib=measured)
    line, largest = memory.STAGE.judge(context)[:2]
    assert line.verdict == verdict
    assert f"farthest off {1000 / measured - 1:+.2%} at batch 4" in line.detail
    assert largest.verdict == NOT_RUN
    write(context, "memory.csv", curve[2], status="oom", reason="CUDA out of memory")
    assert (memory.STAGE.judge(context)[1].verdict, memory.STAGE.judge(context)[1].detail) == (
        PASS, "4; 16 runs out of memory",
    )  # fmt: skip


def test_fusion_must_save_in_prediction_and_measurement(context: Context) -> None:
    eager = memory.fused_cases(context)[0]
    write(context, "memory.csv", eager, predicted_mem_mib=1000.0, peak_mem_mib=1000.0)
    write(context, "memory.csv", replace(eager, impl="fused"), predicted_mem_mib=700.0, peak_mem_mib=1001.0)
    line = memory.STAGE.judge(context)[-2]
    assert line.verdict == FAIL
    assert "predicted 700 MiB of 1,000 MiB, 70%; measured 1,001 MiB" in line.detail


def test_power_is_present_or_says_why(context: Context) -> None:
    first, second, third = power.cases(context)[:3]
    write(context, "power.csv", first, energy_source="nvml", avg_power_w=500.0, idle_power_w=80.0,
          energy_j_per_img=0.25, energy_net_j_per_img=0.21)  # fmt: skip
    write(context, "power.csv", second, status="crashed", reason="worker killed")
    lines = power.STAGE.judge(context)
    assert (lines[0].verdict, lines[0].detail) == (
        PASS, "500 W (idle 80 W), 0.25 J an image, 0.21 J net of idle",
    )  # fmt: skip
    assert (lines[1].verdict, lines[2].verdict) == (FAIL, NOT_RUN)
    assert third.id in lines[2].detail


def kernel_rows(context: Context, *rows: tuple[str, str, float]) -> None:
    with kernels.path(context).open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["kernel", "case", "pass", "dtype", "impl", "status", "launches", "median_us", "floor_share"])
        writer.writerows(["dw", case, "fwd", "bf16", impl, "ok", "fwd", us, 0.5] for case, impl, us in rows)


def test_kernels_are_held_against_eager_and_the_best_peer(context: Context) -> None:
    kernel_rows(context, ("a", "eager", 30), ("a", "sdpa", 12), ("a", "fused", 10), ("b", "eager", 30),
                ("b", "sdpa", 9), ("b", "fused", 10), ("c", "fused", 5), ("b", "fused-nchw", 1))  # fmt: skip
    eager, best = kernels.STAGE.judge(context)
    assert (eager.verdict, eager.detail) == (
        PASS, "2 of 2 cases; least 3.00x of eager at a/fwd/bf16; share of the floor 50% to 50%",
    )  # fmt: skip
    assert (best.verdict, best.detail) == (FAIL, "1 of 2 cases; least 0.90x of sdpa at b/fwd/bf16")


def test_a_wrong_kernel_fails_and_is_in_no_ratio(context: Context) -> None:
    assert [line.verdict for line in kernels.STAGE.judge(context)] == [NOT_RUN]
    kernel_rows(context, ("a", "eager", 30), ("a", "fused", 10))
    text = kernels.path(context).read_text().replace("fused,ok,fwd,10", "fused,incorrect,fwd,")
    kernels.path(context).write_text(text)
    wrong, eager, best = kernels.STAGE.judge(context)
    assert (wrong.what, wrong.verdict) == ("dw/a/fwd/bf16", FAIL)
    assert (eager.verdict, best.verdict) == (NOT_RUN, NOT_RUN)


def test_a_kernel_that_refuses_its_case_fails_on_a_gpu_only(context: Context) -> None:
    kernel_rows(context, ("a", "eager", 30), ("a", "fused", 10), ("a", "sdpa-cudnn", 10))
    text = kernels.path(context).read_text().replace("sdpa-cudnn,ok,fwd,10", "sdpa-cudnn,unsupported,fwd,")
    kernels.path(context).write_text(text.replace("fused,ok,fwd,10", "fused,unsupported,fwd,"))
    refused, *_ = kernels.STAGE.judge(context)
    assert (refused.what, refused.verdict) == ("dw/a/fwd/bf16", FAIL)
    assert all(line.verdict == NOT_RUN for line in kernels.STAGE.judge(replace(context, device="cpu")))


@pytest.mark.parametrize(("module", "says"), [
    ("vitbench.no_such_module", "exit code 1: "),
    ("raises", "exit code 3: vitbench: RuntimeError: the driver is gone"),
    ("silent", "exit code 0: no output"),
    ("killed", "killed by SIGSEGV: no output"),
])  # fmt: skip
def test_a_benchmark_that_fails_or_writes_nothing_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, says: str
) -> None:
    (tmp_path / "silent.py").write_text("")
    (tmp_path / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "raises.py").write_text(
        "import runpy, vitbench.kernel_bench\n"
        "def run(*_, **__): raise RuntimeError('the driver\\nis gone')\n"
        "vitbench.kernel_bench.run = run\n"
        "runpy.run_module('vitbench.kernel_bench', run_name='__main__')\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(kernels, "_BENCH", module)
    context = Context(tmp_path, "cpu")
    kernels.STAGE.run(context, time.monotonic() + 60)
    (line,) = kernels.STAGE.judge(context)
    assert line.verdict == FAIL
    assert line.detail.startswith(says)
    kernel_rows(context, ("a", "eager", 30))
    monkeypatch.setattr(kernels, "_BENCH", "silent")
    kernels.STAGE.run(context, time.monotonic() + 60)
    assert [line.verdict for line in kernels.STAGE.judge(context)] == [NOT_RUN], "a benchmark that works clears it"


def test_a_kernel_that_breaks_the_device_ends_its_process_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(tmp_path, "cpu")
    (tmp_path / "breaks.py").write_text(
        f"import pathlib, sys; file = pathlib.Path({str(kernels.path(context))!r})\n"
        "text = file.read_text() if file.exists() else 'kernel,case,pass,dtype,impl,status,launches,median_us\\n'\n"
        "row = 'dw,b,fwd,bf16,eager,ok,,1' if 'crashed' in text else 'dw,a,fwd,bf16,fused,crashed,fwd,'\n"
        "file.write_text(text + row + '\\n'); sys.exit('crashed' in row)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(kernels, "_BENCH", "breaks")
    kernels.STAGE.run(context, time.monotonic() + 60)
    assert [row["case"] for row in kernels.read(context)] == ["a", "b"]
    line, *_ = kernels.STAGE.judge(context)
    assert (line.what, line.verdict) == ("dw/a/fwd/bf16", FAIL)


@pytest.mark.parametrize(("modelled", "verdicts"), [
    ((10.0, 20.0, 30.0, 40.0), (PASS, PASS)),
    ((40.0, 30.0, 20.0, 10.0), (FAIL, PASS)),
    ((100.0, 200.0, 300.0, 400.0), (PASS, FAIL)),
])  # fmt: skip
def test_the_model_must_rank_and_be_near(
    context: Context, modelled: tuple[float, ...], verdicts: tuple[str, str]
) -> None:
    audited = [
        AuditRow(**{("pass_" if name == "pass" else name): 0 for name in COLUMNS if not name.startswith("stall_")}
                 | {"kernel": "dw", "case": case, "pass_": "fwd", "dtype": "bf16", "arch": "sm_90", "triton": "3.6",
                    "status": "ok", "reason": "", "modelled_us": us, "matrix_instruction": "", "bound_by": "",
                    "occupancy_limit": "", "exact": True})  # type: ignore[arg-type]
        for case, us in zip("abcd", modelled, strict=True)
    ]  # fmt: skip
    write_csv(audited, context.out / "audit.csv")
    kernel_rows(context, *((case, "fused", 11.0 * n) for n, case in enumerate("abcd", start=1)), ("a", "eager", 99.0))
    with (context.out / "prediction.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, prediction.COLUMNS)
        writer.writeheader()
        writer.writerows(prediction._measured(context))
    lines = prediction.STAGE.judge(context)
    assert tuple(line.verdict for line in lines) == verdicts
    assert "4 of 4 measured passes audited" in lines[0].detail
