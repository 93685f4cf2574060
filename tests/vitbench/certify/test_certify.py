"""The certification end to end where there is no GPU: it runs, resumes, keeps to its time and says what it did not."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitbench import cli
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.bench.sweep import Summary
from vitbench.certify import command, correctness, memory, models, power, recorder, stages, sweeping
from vitbench.certify.options import CertifyOptions
from vitbench.certify.stage import FAIL, NOT_RUN, PASS, Context, Line, Stage
from vitbench.certify.summary import markdown
from vitbench.errors import InputError
from vitbench.readme import fill
from vitbench.results import journal

RESULT = re.compile(r"^\| (.+) \| (pass|fail|not run) \| (.*) \|$", re.MULTILINE)


def stamps(out: Path) -> dict[str, list[str]]:
    """When each measured row was, and how long each test took: what measuring again would change."""
    swept = {f"{name}.csv": [row.started_at or "" for row in journal.read(out / f"{name}.csv")]
             for name in ("models", "power", "memory")}  # fmt: skip
    others = ("doctor.csv", "correctness.csv", "kernels.csv", "audit.csv")
    return swept | {name: (out / name).read_text().splitlines() for name in others}


def certify(out: Path, budget: float, stage: str = "all") -> int:
    return command.run(CertifyOptions(budget=budget, stage=stage, out=out, device="cpu"))


@pytest.mark.smoke
def test_the_rehearsal_measures_judges_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A user's shell has no such thing; with it the workers would interpret whole networks' kernels, for minutes.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert certify(tmp_path, budget=1e-6) == 0
    lines = RESULT.findall((tmp_path / "summary.md").read_text(encoding="utf-8"))
    assert {verdict for _, verdict, _ in lines} == {NOT_RUN}, "there was no time for anything"

    assert certify(tmp_path, budget=3600) == 0
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+):", text, re.MULTILINE) == [stage.name for stage in command.STAGES]
    told = {what: (verdict, detail) for what, verdict, detail in RESULT.findall(text)}
    assert told["a row from a worker"][0] == told["gated_attention fwd+bwd: 49 tokens"][0] == PASS
    assert told["tests/vitkernels/attention/test_operators.py"][0] == PASS
    assert told["cmt_s infer, bf16, batch 64, 224 px: at least 1.5x the throughput of torch.compile"][0] == NOT_RUN
    assert next(v for k, v in told.items() if k.startswith("convit_tiny: every"))[0] == NOT_RUN
    predicted = [v for k, v in told.items() if "predicted within 5%" in k]
    assert [verdict for verdict, _ in predicted] == [PASS] * 2
    saved = next(detail for what, (_, detail) in told.items() if "fused needs less memory" in what)
    assert saved.endswith("not measured"), "without a GPU nothing fused is measured"
    assert told["kernels"] == (NOT_RUN, "1 cases rehearsed; speed needs an NVIDIA GPU")
    assert "2 launches audited" in told["modelled kernel times rank kernels as the GPU does"][1]
    rows = {row.case: row for row in journal.read(tmp_path / "models.csv")}
    assert rows.keys() == {case.id for case in models.cases(Context(tmp_path, "cpu"))}
    fused = rows["convit_tiny/fused/train/fp32/nhwc/32/b2/cpu"]
    assert (fused.status, fused.speed.img_per_s) == ("unsupported", None)

    before = stamps(tmp_path)
    assert certify(tmp_path, budget=3600) == 0
    assert stamps(tmp_path) == before
    assert "8 of 8 cases are already in" in capsys.readouterr().out
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == text

    page = "before\n<!-- certified: results/*/certify -->\nold\n<!-- end -->\nafter\n"
    assert fill(page, tmp_path) == page.replace("old\n", ""), "nothing lies there yet"
    shutil.copytree(tmp_path, tmp_path / "results" / "a-cpu" / "certify", ignore=shutil.ignore_patterns("results"))
    filled = fill(page, tmp_path)
    assert RESULT.findall(filled) == RESULT.findall(text), "judged from the same files"
    assert [line for line in filled.splitlines() if line.startswith("#")] == [
        f"##{line}" for line in text.splitlines() if line.startswith("#")
    ]
    assert fill(filled, tmp_path) == filled


def complaint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["vitbench", "certify", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("arguments", "says"), [
    (["--stage", "model"], "--stage 'model' is unknown: did you mean models?"),
    (["--stage", "zzz"], "allowed: doctor, correctness, kernels, models, power, memory, prediction, all"),
    (["--stage", ""], "is unknown"),
    (["--budget", "0"], "above zero"),
    (["--budget", "-5"], "above zero"),
    (["--budget", "nan"], "above zero"),
    (["--device", "tpu"], "allowed: cpu, cuda"),
    (["--device", "cpu", "--out", "/proc/nowhere"], "cannot write"),
])  # fmt: skip
def test_bad_input_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert says in complaint(capsys, monkeypatch, *arguments)


def test_a_device_that_is_absent_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbench.measure.device.nvml", lambda: None)
    assert "needs an NVIDIA GPU and driver" in complaint(capsys, monkeypatch, "--device", "cuda")


def test_a_folder_of_another_environment_is_refused(tmp_path: Path) -> None:
    command._claim(tmp_path, {"torch": "2.11.0", "driver": None})
    command._claim(tmp_path, {"torch": "2.11.0", "driver": None})
    with pytest.raises(InputError, match=r"torch was '2.11.0', is '2.13.0'.*another --out"):
        command._claim(tmp_path, {"torch": "2.13.0", "driver": None})


def test_stages_share_what_the_others_leave(tmp_path: Path) -> None:
    given: dict[str, float] = {}

    def stage(name: str, share: float, lasts: float) -> Stage:
        def run(context: Context, deadline: float) -> bool:
            given[name] = deadline - time.monotonic()
            time.sleep(lasts)
            return False

        return Stage(name, name, share, run, lambda context: [Line(name, PASS, "")])

    stages = (stage("a", 1, 0), stage("b", 1, 0.3), stage("c", 2, 0), stage("d", 0.01, 0))
    command._run_stages(stages[:3], Context(tmp_path, "cpu"), time.monotonic() + 10)
    assert given["a"] == pytest.approx(2.5, abs=0.2)
    assert given["b"] == pytest.approx(10 / 3, abs=0.2)
    assert given["c"] == pytest.approx(9.7, abs=0.2)
    command._run_stages(stages, Context(tmp_path, "cpu"), time.monotonic() - 1)
    assert "d" not in given


def test_a_failed_line_of_a_chosen_stage_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stage(name: str, verdict: str) -> Stage:
        return Stage(name, name, 1, lambda context, deadline: False, lambda context: [Line("x | y", verdict, "why")])

    planned = (stage("good", PASS), stage("bad", FAIL))
    for module in (command, stages):
        monkeypatch.setattr(module, "STAGES", planned)
    assert certify(tmp_path, budget=1, stage="good") == 0
    assert certify(tmp_path, budget=1) == 1
    assert "| x \\| y | fail | why |" in (tmp_path / "summary.md").read_text()


def test_summary_escapes_and_names_the_environment() -> None:
    stage = command.STAGES[0]
    text = markdown({stage: [Line("a", FAIL, "b |\nc")]}, {"torch": "2.11.0", "driver": None, "threads": 2})
    assert text.splitlines()[2] == "torch 2.11.0"
    assert "| a | fail | b \\| c |" in text


def test_the_full_plan_can_be_built_and_begins_with_the_aims(timm: object, tmp_path: Path) -> None:
    from vitbench.selection import check_resolution

    context = Context(tmp_path, "cuda")
    planned = models.cases(context)
    assert len(planned) == len(set(planned)) == 8 * 2 * 6 * 7
    assert [(case.model, case.mode, case.impl) for case in planned[:3]] == [
        ("cmt_s", "infer", impl) for impl in ("eager", "compile", "fused")
    ]
    aims = {(case.model, case.mode) for case in planned[:12]}
    assert aims == {(model, mode) for model in ("cmt_s", "coatnet_0") for mode in ("infer", "train")}
    curves = [case for curve in memory.curve_cases(context) for case in curve]
    for case in {*planned, *power.cases(context), *curves, *memory.fused_cases(context)}:
        check_resolution(case.model, case.resolution)
        assert case.device == "cuda"


def test_what_never_fits_its_time_keeps_nothing_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = (
        [Case("convit_tiny", impl, mode, "fp32", "nhwc", (32, 32), 2, "cpu") for impl in ("eager", "sdpa")]
        for mode in ("train", "infer")
    )
    begun: list[str] = []

    def run(cases: list[Case], *_: object) -> Summary:
        """The time is up in the first group that is slow."""
        begun.append(cases[0].mode)
        return Summary(cut_off=slow)

    monkeypatch.setattr(sweeping.sweep, "run", run)
    for _ in range(4):
        sweeping.measure([*slow, *quick], tmp_path / "models.csv", SweepOptions(), time.monotonic())
    assert begun == ["train", "train", "infer", "infer"]


MARKED = "import pytest\npytestmark = pytest.mark.rehearsal\n"


def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> tuple[Context, Path]:
    """A checkout whose only tests are `text`, and where they are."""
    tests = tmp_path / "tests" / "vitkernels"
    tests.mkdir(parents=True)
    (tmp_path / "tests" / "conftest.py").write_text(
        "def pytest_addoption(parser): parser.addoption('--device')\n"
        "def pytest_configure(config): config.addinivalue_line('markers', 'rehearsal')\n"
    )
    (tests / "test_operators.py").write_text(MARKED + text)
    (tests / "test_others.py").write_text("1 / 0\n")  # of which none is asked for, so that it is not imported
    monkeypatch.setattr(correctness, "_ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(correctness.__file__).parents[2]))
    context = Context(tmp_path / "out", "cpu")
    context.out.mkdir()
    return context, tests / "test_operators.py"


def outcomes(context: Context) -> list[tuple[str, str]]:
    """Every test's outcomes in the order in which they were recorded."""
    with (context.out / "correctness.csv").open() as handle:
        rows = [(row["test"].partition("::")[2], row["outcome"]) for row in csv.DictReader(handle)]
    return [(name.removeprefix("test_token_major_"), outcome) for name, outcome in rows]


class UntilStarted:
    """A clock that shows 0 until a test has been started, and then 1."""

    sleep = staticmethod(time.sleep)

    def __init__(self, context: Context, test: str) -> None:
        self.path, self.test = context.out / "correctness.csv", test

    def monotonic(self) -> float:
        records = recorder.read(self.path).values()
        return float(any(one.test.endswith(self.test) and one.outcome == recorder.STARTED for one in records))


def test_a_killed_test_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, file = repository(
        tmp_path, monkeypatch,
        "import pytest, time\n"
        "def test_token_major_good(): pass\n"
        "def test_token_major_bad(): assert 1 == 2, 'one, two'\n"
        "def test_token_major_skipped(): pytest.skip('no such card')\n"
        "def test_token_major_slow(): time.sleep(1000)\n"
        "def test_token_major_after(): pass\n",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(correctness, "time", UntilStarted(context, "slow"))
        correctness.STAGE.run(context, 1.0)
    (line,) = correctness.STAGE.judge(context)
    assert line.verdict == FAIL
    assert line.detail.startswith("1 passed, 1 failed, 1 skipped, 1 planned, 1 started; first: test_token_major_bad: ")
    assert "one, two" in line.detail
    file.write_text(file.read_text().replace("1000", "0").replace("1 == 2", "1 == 1"))
    correctness.STAGE.run(context, time.monotonic() + 60)
    (line,) = correctness.STAGE.judge(context)
    assert line.detail.startswith("3 passed, 1 failed, 1 skipped"), "what has an outcome is not run again"
    assert outcomes(context).count(("good", "passed")) == 1
    assert outcomes(context)[-2:] == [("slow", "started"), ("slow", "passed")], "what was cut off is run last"


def test_a_test_that_ends_its_process_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, _ = repository(
        tmp_path, monkeypatch,
        "import os, sys\n"
        "def test_token_major_a(): pass\n"
        "def test_token_major_b(): print('Fatal Python error', file=sys.stderr); os._exit(139)\n"
        "def test_token_major_c(): pass\n"
        "def test_token_major_d(): os.abort()\n",
    )  # fmt: skip
    correctness.STAGE.run(context, time.monotonic() + 120)
    (line,) = correctness.STAGE.judge(context)
    assert (line.verdict, line.detail.partition(";")[0]) == (FAIL, "2 passed, 2 failed")
    assert "first: test_token_major_b: ended its process: exit code 139: " in line.detail
    last = dict(outcomes(context))
    assert last == {"a": "passed", "b": "failed", "c": "passed", "d": "failed"}
    assert "killed by SIGABRT" in (context.out / "correctness.csv").read_text()


def test_a_test_that_breaks_the_device_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, _ = repository(
        tmp_path, monkeypatch,
        "import sys, types\n"
        "broken = []\n"
        "def synchronize():\n"
        "    if broken: raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)\n"
        "sys.modules['torch'] = types.SimpleNamespace(cuda=cuda)\n"
        "def test_token_major_a(): synchronize()\n"
        "def test_token_major_b(): broken.append(1)\n"
        "def test_token_major_c(): synchronize()\n"
        "def test_token_major_d(): synchronize()\n",
    )  # fmt: skip
    correctness.STAGE.run(context, time.monotonic() + 120)
    assert dict(outcomes(context)) == {"a": "passed", "b": "failed", "c": "passed", "d": "passed"}
    (line,) = correctness.STAGE.judge(context)
    assert "first: test_token_major_b: broke the device: CUDA error: an illegal" in line.detail


def test_on_a_gpu_the_models_on_those_kernels_are_tested_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of pytest can be collected, and nothing else of that file is."""
    commands: list[list[str]] = []

    class Collected(correctness.Process):
        def __init__(self, command: list[str], *how: object, **more: object) -> None:
            commands.append(command)
            super().__init__([sys.executable, "-c", ""])

    monkeypatch.setattr(correctness, "Process", Collected)
    correctness.STAGE.run(Context(tmp_path, "cuda"), time.monotonic() + 60)
    command = commands[0][: commands[0].index("--device")]
    done = subprocess.run([*command, "--collect-only", "-q"], cwd=correctness._ROOT, capture_output=True, text=True)
    collected = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert done.returncode == 0, done.stdout
    assert {name.partition("::")[2] for name in collected if "vitbench" in name} == {
        "test_inference_agrees_with_eager",
        "test_training_agrees_with_eager_in_every_gradient_and_statistic",
        "test_autocast_and_half_precision_err_no_more_than_eager",
    }
    assert any(name.startswith("tests/vitkernels/fusing/test_fuse.py::") for name in collected)
    assert not any("test_compiled" in name or "test_on_cpu" in name for name in collected)


def test_what_cannot_start_fails_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, file = repository(tmp_path, monkeypatch, "def test_token_major_a(): pass\n")
    conftest = file.parents[1] / "conftest.py"
    right = conftest.read_text()
    for wrong, name in ((f"{right}import os; os._exit(9)\n", "pytest shard 0/1"), (right, file.name)):
        conftest.write_text(wrong)
        file.write_text(MARKED + ("nonsense\n" if wrong == right else ""))
        correctness.STAGE.run(context, time.monotonic() + 60)
        assert [line.verdict for line in correctness.STAGE.judge(context) if line.what.endswith(name)] == [FAIL]
    file.write_text(f"{MARKED}def test_token_major_a(): pass\n")
    correctness.STAGE.run(context, time.monotonic() + 60)
    (line,) = correctness.STAGE.judge(context)
    assert (line.verdict, line.detail) == (PASS, "1 passed")
