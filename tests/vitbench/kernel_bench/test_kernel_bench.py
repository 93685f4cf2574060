"""`make kernels-bench`: what is verified, what becomes of the rest, how a run resumes, and what it writes."""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend

from vitbench.audit.registry import launches
from vitbench.audit.validate import measurements
from vitbench.errors import InputError, Unsupported
from vitbench.gate import measurements as measured
from vitbench.kernel_bench import Finished, group, run, sweep, timing
from vitbench.kernel_bench.cases import Planned, plan
from vitbench.kernel_bench.peers import through
from vitbench.kernel_bench.problem import Impl, Problem, reference_outcome
from vitbench.kernel_bench.rows import STATUSES, TABLE, KernelRow, append, read
from vitbench.measure import device as devices
from vitbench.measure.latency import Latency, measure
from vitbench.results import journal

ENVIRONMENT = devices.environment("cpu")


def product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def fail(problem: Exception) -> Callable[..., Tensor]:
    def call(*_: Tensor) -> Tensor:
        raise problem

    return call


class HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return grads[0] / 2


IMPLS = {
    "eager": product,
    "slower": lambda a, b: sum(product(a, b) for _ in range(64)) / 64,
    "off": lambda a, b: product(a, b) * 1.001,
    "nan": lambda a, b: product(a, b) / 0,
    "refuses": fail(Unsupported("no masks here")),
    "no kernel": through(SDPBackend.MATH, fail(RuntimeError("No available kernel. Aborting execution."))),
    # Torch's class where it has no kernel: a fault of ours that raises it must not pass for "unsupported".
    "lacks an operator": fail(NotImplementedError("an operator of ours is not supported here")),
    "breaks": fail(RuntimeError("first line\nsecond line")),
    "too large": fail(torch.OutOfMemoryError("tried to allocate 1 TiB")),
}


def problem(train: bool = False, **others: Callable[..., Tensor]) -> Problem:
    torch.manual_seed(0)
    a, b = torch.randn(6, 32, 32), torch.randn(32, 32)
    impls = [Impl(name, call) for name, call in (IMPLS | others).items()]
    impls.append(Impl("known", product, unsupported="a known bug"))
    return Problem([a, b], torch.randn(6, 32, 32) if train else None, product, tuple(impls), ((43_000, 860),), 1, 1024)


def planned(case: str = "toy", train: bool = False, **others: Callable[..., Tensor]) -> Planned:
    return Planned("product", case, "fwd+bwd" if train else "fwd", "fp32", lambda: problem(train, **others))


def by_impl(found: Sequence[tuple[KernelRow, list[float]]]) -> dict[str, KernelRow]:
    return {row.impl: row for row, _ in found}


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three problems, instead of those of the kernels."""
    monkeypatch.setattr(sweep, "plan", lambda *_: [planned("first"), planned("second"), planned("third", train=True)])


def go(out: Path, budget: float = math.inf) -> Finished:
    return run("*", "cpu", ["fp32"], budget, out, max_seconds=0.02)


def test_every_failure_is_a_row_with_a_reason_and_without_a_time() -> None:
    rows = by_impl(group.measure(planned(), "cpu", ENVIRONMENT, max_seconds=0.05))
    said = {name: (row.status, row.reason) for name, row in rows.items()}
    assert said.pop("eager") == said.pop("slower") == ("ok", "")
    status, reason = said.pop("off")
    assert status == "incorrect"
    assert reason == "error 0.001 against fp64, 1e-05 allowed"
    assert said == {
        "nan": ("incorrect", "it gives NaN or infinity"),
        "refuses": ("unsupported", "no masks here"),
        "no kernel": ("unsupported", "No available kernel. Aborting execution."),
        "lacks an operator": ("error", "an operator of ours is not supported here"),
        "breaks": ("error", "first line second line"),
        "too large": ("oom", "tried to allocate 1 TiB"),
        "known": ("unsupported", "a known bug"),
    }
    for row in rows.values():
        assert row.status in STATUSES
        assert row.impls == len(rows) == len(IMPLS) + 1
        assert (row.status == "ok") == (row.median_us is not None) == (row.samples is not None)


def test_times_are_ordered_and_relative_to_eager() -> None:
    found = group.measure(planned(), "cpu", ENVIRONMENT, max_seconds=0.1)
    rows = by_impl(found)
    eager, slower = rows["eager"], rows["slower"]
    assert eager.speedup_over_eager == 1
    assert slower.speedup_over_eager is not None
    assert slower.speedup_over_eager < 0.5
    for row, samples in found:
        if row.status == "ok":
            assert row.samples == len(samples) > 3
            assert row.ci_low_us <= row.median_us <= row.ci_high_us
            assert row.median_us <= row.p95_us <= max(samples)
            assert (row.graph_us, row.floor_us, row.floor_share) == (None, None, None)  # of GPUs


def test_a_wrong_gradient_is_incorrect_though_the_output_is_right() -> None:
    halved = {"half": lambda a, b: product(HalfGradient.apply(a), b)}
    rows = by_impl(group.measure(planned(train=True, **halved), "cpu", ENVIRONMENT, max_seconds=0.02))
    assert (rows["eager"].status, rows["half"].status, rows["half"].median_us) == ("ok", "incorrect", None)
    assert by_impl(group.measure(planned(**halved), "cpu", ENVIRONMENT, max_seconds=0.02))["half"].status == "ok"


def test_without_a_yardstick_nothing_is_timed() -> None:
    rows = by_impl(group.measure(planned(eager=fail(RuntimeError("boom"))), "cpu", ENVIRONMENT))
    assert rows["slower"].status == "error"
    assert rows["slower"].reason == "nothing to verify against: boom"
    assert all(row.median_us is None for row in rows.values())


def test_the_reference_in_chunks_is_the_reference_at_once() -> None:
    whole = problem(train=True)
    at_once = reference_outcome(replace(whole, batched=0))
    for elements in (1 << 26, 1 << 24, 1 << 25):  # 1, 4 and 2 images at a time
        found = reference_outcome(replace(whole, image_elements=elements))
        torch.testing.assert_close(found.output, at_once.output)
        torch.testing.assert_close(found.gradients, at_once.gradients)
    assert at_once.output.dtype == torch.float64


@pytest.mark.usefixtures("toys")
def test_a_run_resumes_row_by_row(tmp_path: Path) -> None:
    out = tmp_path / "new" / "kernels.csv"
    first = go(out)
    assert (first.stopped, first.measured, first.resumed, first.left) == ("done", 3, 0, 0)
    text = out.read_text()
    again = go(out)
    assert (again.stopped, again.measured, again.resumed, again.rows) == ("done", 0, 3, [])
    assert out.read_text() == text

    lines = text.splitlines(keepends=True)
    lost = next(i for i, line in enumerate(lines) if line.startswith("product,second,fwd,fp32,slower"))
    # One row never written, and the last cut short by a kill.
    out.write_text("".join(lines[:lost] + lines[lost + 1 :])[:-20])
    third = go(out)
    assert (third.measured, third.resumed) == (2, 1)
    assert [row.id for row in third.rows] == ["product/second/fwd/fp32/slower", "product/third/fwd+bwd/fp32/known"]
    assert sorted(row.id for row in read(out)) == sorted(row.id for row in first.rows)
    eager = next(row for row in read(out) if row.id == "product/second/fwd/fp32/eager")
    assert third.rows[0].speedup_over_eager == pytest.approx(eager.median_us / third.rows[0].median_us)
    beside = [json.loads(line) for line in journal.samples_path(out).read_text().splitlines()]
    assert {record["id"] for record in beside} == {row.id for row in first.rows if row.status == "ok"}


@pytest.mark.usefixtures("toys")
def test_the_budget_ends_a_run_between_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "kernels.csv"
    none = go(out, budget=0)
    assert (none.stopped, none.measured, none.left, read(out)) == ("budget", 0, 3, [])
    ticks = iter([0.0, 5.0, 15.0])  # the start, and before each problem
    with monkeypatch.context() as patched:
        patched.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        one = go(out, budget=10)
    assert (one.stopped, one.measured, one.left) == ("budget", 1, 2)
    assert {row.case for row in read(out)} == {"first"}
    rest = go(out)
    assert (rest.stopped, rest.measured, rest.resumed) == ("done", 2, 1)


@pytest.mark.usefixtures("toys")
def test_a_lost_device_leaves_a_row_and_the_next_run_passes_it_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: torch.device) -> None:
        raise group.DeviceLost([])

    out = tmp_path / "kernels.csv"
    with monkeypatch.context() as patched:
        patched.setattr(group, "_check_device", broken)
        lost = go(out)
    assert (lost.stopped, lost.measured) == ("device lost", 0)
    [row] = read(out)
    assert (row.impl, row.status, row.reason) == ("refuses", "crashed", "no masks here")
    after = go(out)
    assert after.stopped == "done"
    assert "product/first/fwd/fp32/refuses" not in {row.id for row in after.rows}
    assert len(read(out)) == 3 * (len(IMPLS) + 1)


@pytest.mark.usefixtures("toys")
def test_rows_of_another_environment_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "kernels.csv"
    go(out)
    out.write_text(out.read_text().replace(str(ENVIRONMENT.torch), "1.0.0"))
    with pytest.raises(InputError, match=r"torch is '1.0.0', here it is '.*; give another --out"):
        go(out)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"])) | st.just('a, "b" c')
numbers = st.none() | st.floats(1e-3, 1e9).map(lambda value: float(f"{value:.6g}"))


@st.composite
def kernel_rows(draw: st.DrawFn) -> KernelRow:
    values: dict[str, object] = {}
    for field in fields(KernelRow):
        kind = str(field.type)
        if kind == "str":
            values[field.name] = draw(texts)
        elif kind == "int":
            values[field.name] = draw(st.integers(1, 99))
        elif kind.startswith("float"):
            values[field.name] = draw(numbers)
        elif kind.startswith("int"):
            values[field.name] = draw(st.none() | st.integers(0, 10**9))
        elif kind.startswith("bool"):
            values[field.name] = draw(st.none() | st.booleans())
        else:
            values[field.name] = draw(st.none() | texts.filter(bool))
    return KernelRow(**values)  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(st.lists(kernel_rows(), min_size=1, max_size=3))
def test_rows_survive_the_file(tmp_path_factory: pytest.TempPathFactory, rows: list[KernelRow]) -> None:
    path = tmp_path_factory.mktemp("rows") / "kernels.csv"
    for row in rows:
        append(path, row, [1.0])
    assert read(path) == rows
    assert tuple(path.read_text(encoding="utf-8").splitlines()[0].split(",")) == TABLE.header


def test_the_header_is_the_fields_of_the_row(tmp_path: Path) -> None:
    assert [field.name.replace("pass_", "pass") for field in fields(KernelRow)] == list(TABLE.header)
    other = tmp_path / "other.csv"
    other.write_text("model,batch\nvit,1\n")
    with pytest.raises(InputError, match="not a CSV of kernel timings"):
        read(other)
    damaged = tmp_path / "damaged.csv"
    damaged.write_text(TABLE.header_line + ",".join(["x"] * len(TABLE.header)) + "\n")
    with pytest.raises(InputError, match="line 2 is damaged"):
        read(damaged)


def test_the_floor_is_the_slower_of_bytes_and_products_of_each_pass() -> None:
    by_bytes, by_products = (790, 4_300_000 * 2), (790_000_000 * 3, 4_300)
    assert group.floor_us((by_bytes,), "NVIDIA H200") == pytest.approx(2)
    assert group.floor_us((by_bytes, by_products), "NVIDIA H200") == pytest.approx(5)
    assert group.floor_us((by_bytes,), "NVIDIA T4") is None


def test_the_most_telling_cases_come_first_and_none_is_missing() -> None:
    full = plan("*", "meta", ["bf16", "fp32"])
    assert [item.id for item in full[:3]] == [
        "relative_attention/coatnet_0-s3-224/fwd/bf16",
        "relative_attention/coatnet_0-s3-224/fwd+bwd/bf16",
        "reduced_attention/cmt_s-a-224-b64/fwd/bf16",
    ]
    assert [item.dtype for item in full] == ["bf16"] * (len(full) // 2) + ["fp32"] * (len(full) // 2)
    assert len({item.id for item in full}) == len(full)
    audited = {(launch.op, launch.case) for launch in launches(["vitkernels"], 90) if not launch.case.endswith("nchw")}
    assert audited <= {(item.kernel, item.case) for item in full}
    assert all(item.case.endswith("-small") for item in plan("*", "cpu", ["fp32"]))
    with pytest.raises(InputError, match="no kernel case matches 'nothing'"):
        plan("nothing", "cpu", ["fp32"])
    with pytest.raises(InputError, match="'int8' is unknown; allowed: bf16, fp16, fp32"):
        plan("*", "cpu", ["int8"])


def test_what_fused_launches_is_what_the_audit_calls_it() -> None:
    audited: dict[tuple[str, str], set[str]] = {}
    for launch in launches(["vitkernels"], 90):
        audited.setdefault((launch.op, launch.case), set()).add(launch.pass_name)
    checked = 0
    for item in plan("*", "meta", ["bf16"]):
        fused, *others = (impl for impl in item.build().impls)
        assert fused.name == "fused"
        assert all(impl.launches == "" for impl in others if not impl.name.startswith("fused"))
        for pattern in filter(None, fused.launches.split("+")):
            passes = audited[item.kernel, item.case]
            assert any(name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1])) for name in passes)
            checked += 1
    assert checked > 100


def test_cudnns_backward_is_refused_where_it_gives_nan() -> None:
    def refused(pattern: str) -> dict[str, str]:
        found = {}
        for item in plan(pattern, "meta", ["bf16"]):
            cudnn = next(impl for impl in item.build().impls if impl.name == "sdpa-cudnn")
            found[item.pass_] = cudnn.unsupported
        return found

    at_576 = refused("relative_attention/coatnet_0-s3-384")
    assert at_576["fwd"] == ""
    assert "pytorch#196678" in at_576["fwd+bwd"]
    assert set(refused("relative_attention/coatnet_0-s3-224").values()) == {""}


KERNELS = ("relative_attention", "bias_attention", "reduced_attention", "gated_attention", "depthwise_conv2d")
# The pass with gradients holds the output too; where inference takes another path, both.
ONE_EACH = (
    "relative_attention/coatnet_0-s3-224*,reduced_attention/cmt_s-a-224*,bias_attention/cmt_s-a-224*/fwd+bwd/*,"
    "gated_attention/convit_small*/fwd+bwd/*,depthwise_conv2d/cmt_s-a-irffn*/fwd+bwd/*"
)


@pytest.mark.parametrize("item", plan(ONE_EACH, "cpu", ["fp32"]), ids=lambda item: item.id)
def test_the_kernels_themselves_pass_the_verification(item: Planned, device: str) -> None:
    """In the interpreter on the CPU, on a GPU at the same small shapes."""
    if device == "cuda":
        case = item.case.removesuffix("-small")
        [item] = plan(f"{item.kernel}/{case}/{item.pass_}/bf16", device, ["bf16"])
    built = item.build()
    ours = [impl for impl in built.impls if impl.name.startswith("fused")]
    for impl in ours:
        assert len(group.verified(built, replace(impl, unsupported=""), item.dtype, device)()) >= 1


@pytest.mark.parametrize("pattern", [f"{kernel}/*" for kernel in KERNELS])
def test_rivals_on_the_cpu_are_right_or_say_why_not(pattern: str) -> None:
    for item in plan(pattern, "cpu", ["fp32"])[:2]:
        found = group.measure(item, "cpu", ENVIRONMENT, skip=("compile", "flex"), max_seconds=0.01)
        rows = by_impl(found)
        assert rows["eager"].status == "ok"
        assert (rows["fused"].status, rows["fused"].median_us) == ("unsupported", None)
        assert {row.status for row in rows.values()} == {"ok", "unsupported"}
        assert all(row.reason for row in rows.values() if row.status != "ok")
        rival = "eager-nchw" if item.kernel == "depthwise_conv2d" else "sdpa-math"
        assert rows[rival].status == "ok"


@pytest.mark.parametrize("kernel", ["bias_attention", "relative_attention"])
@pytest.mark.parametrize("pass_", ["fwd", "fwd+bwd"])
def test_peers_in_other_packages_are_rows_that_say_what_they_need(kernel: str, pass_: str) -> None:
    item = next(item for item in plan(f"{kernel}/*", "cpu", ["fp32"]) if item.pass_ == pass_)
    why = {impl.name: impl.unsupported for impl in item.build().impls}
    needs_gpu = "needs a GPU"
    packages = "needs cuequivariance-torch and cuequivariance-ops-torch-cu13 (pip install)"
    assert why["cuequivariance"] == (needs_gpu if find_spec("cuequivariance_torch") else packages)
    forward_alone = "FlexAttention's FLASH backend has no gradient of a captured bias"
    flash = needs_gpu if find_spec("flash_attn") else "needs flash-attn-4 (pip install)"
    assert why["flex-flash"] == (flash if pass_ == "fwd" else forward_alone)


def test_the_command_measures_compiled_rivals_too(tmp_path: Path) -> None:
    out = tmp_path / "kernels.csv"
    pattern = "gated_attention/convit_tiny-224-small/fwd/*"
    command = [sys.executable, "-m", "vitbench.kernel_bench", "--device", "cpu", "--kernel", pattern]
    command += ["--out", str(out), "--max-time", "0.05"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vitbench: " not in done.stderr  # torch.compile may warn of what the machine lacks
    assert "1 problems measured" in done.stdout
    status = {row.impl: row.status for row in read(out)}
    assert {name for name, what in status.items() if what == "ok"} == {"eager", "sdpa-math", "flex", "compile"}
    assert measurements(out) == []  # peers' rows are none of the audit's launches


def test_bad_input_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["kernel_bench", "--device", "cpu", "--dtype", "int8"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("vitbench.kernel_bench", run_name="__main__")
    assert exit.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["vitbench: dtype 'int8' is unknown; allowed: bf16, fp16, fp32"]


def test_benchmarks_for_the_gate(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    file = Path(__file__).parents[2] / "vitkernels" / "bench_kernels.py"
    command = [sys.executable, "-m", "pytest", str(file), "--device", "cpu", "--benchmark-only", "-q"]
    command += [
        "--benchmark-json",
        str(out),
        "-k",
        "relative_attention and s4-224 or cmt_s-d-lpu",
        "-p",
        "no:cacheprovider",
    ]
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parents[2], env=own)
    assert done.returncode == 0, done.stdout
    found = json.loads(out.read_text())["benchmarks"]
    assert {(b["extra_info"]["kernel"], b["extra_info"]["pass"]) for b in found} == {
        (kernel, pass_) for kernel in ("relative_attention", "depthwise_conv2d") for pass_ in ("fwd", "fwd+bwd")
    }
    for entry in found:
        assert entry["extra_info"]["impl"] == "reference"
        assert entry["extra_info"]["dtype"] == "fp32"
        assert len(entry["stats"]["data"]) == 10
        assert all(seconds > 0 for seconds in entry["stats"]["data"])
    loaded = measured.load(out)
    assert all(outcome.status == "ok" for outcome in loaded.cases.values())
    assert loaded.environment["torch"] == ENVIRONMENT.torch


def test_before_is_called_ahead_of_every_sample_and_not_timed() -> None:
    log: list[str] = []

    def before() -> None:
        log.append("before")
        sum(range(200_000))  # milliseconds

    found = measure([lambda: log.append("a"), lambda: log.append("b")], torch.device("cpu"), 0.0, 0.05, before=before)
    log = log[log.index("before") :]  # what precedes is warm-up
    assert log[::2] == ["before"] * (len(log) // 2)
    assert {"a", "b"} == set(log[1::2])
    assert all(latency.p50 < 0.5 for latency in found)


@pytest.mark.parametrize(("breaks", "reasons"), [
    ("replay", ["", "no CUDA graph: out of resources"]),
    ("timing", ["replaying as CUDA graphs failed: out of resources"] * 2),
])  # fmt: skip
def test_a_graph_that_fails_when_it_is_replayed_is_a_reason(
    breaks: str, reasons: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fine() -> None: ...

    def bad() -> None:
        raise torch.OutOfMemoryError("out of resources")

    def latencies(steps: Sequence[Callable[[], None]], *_: object) -> list[Latency]:
        if breaks == "timing":
            bad()
        return [Latency([2.0], "cap") for _ in steps]

    monkeypatch.setattr(timing, "record_call", lambda step, device: step)
    monkeypatch.setattr(timing, "latencies", latencies)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    found = timing.graph_us([fine, bad if breaks == "replay" else fine], torch.device("cuda"))
    assert [why for _, why in found] == reasons
    assert [us for us, _ in found] == [None if why else 2000.0 for why in reasons]
