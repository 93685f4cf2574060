"""Compiling in other processes: arguments, failures, crashes, cache, registration and the command line."""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitbench.audit import registry
from vitbench.audit.job import reference
from vitbench.audit.run import Audited, audit, audit_launches, parse_arch
from vitbench.cli import app
from vitbench.errors import InputError

Command = Callable[..., subprocess.CompletedProcess[str]]
KERNELS = str(Path(__file__).with_name("broken_kernels.py"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine_code")


@pytest.fixture(scope="module")
def items(cache: Path) -> dict[str, Audited]:
    return {item.launch.case: item for item in audit([KERNELS], archs=[90], processes=1, cache=cache)}


def test_compiles_although_this_process_may_run_the_interpreter(items: dict[str, Audited]) -> None:
    good = items["good"]
    assert good.row.status == "ok", good.row.reason
    assert good.compiled is not None
    names = [name for _, _, name in good.compiled.parameters if name]
    assert names == ["x_ptr", "y_ptr", "n", "scale", "flag"], "constants and absent pointers are no parameters"


def test_nothing_is_begun_once_it_is_to_stop(cache: Path) -> None:
    planned = [(launch, 90) for launch in registry.launches([KERNELS], 90)]
    finished: list[int] = []
    found = audit_launches(
        planned, 1, cache, done=lambda done, _: finished.append(done), stop=lambda: len(finished) >= 2
    )
    assert len(found) == 2 < len(planned)
    assert {item.launch.id for item in found} <= {launch.id for launch, _ in planned}


def test_one_is_a_constant_and_large_integers_are_64_bit(items: dict[str, Audited]) -> None:
    one, huge, plain = (items[case].compiled for case in ("one", "huge", "good"))
    assert one is not None
    assert huge is not None
    assert plain is not None
    assert "n" not in [name for _, _, name in one.parameters]
    assert [size for _, size, name in huge.parameters if name == "n"] == [8]
    assert [size for _, size, name in plain.parameters if name == "n"] == [4]


def test_absent_pointer_compiles_the_branch_away(items: dict[str, Audited]) -> None:
    assert items["with bias"].row.loaded_bytes == 2 * items["good"].row.loaded_bytes


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("odd block", "arange"),
        ("crash", "the compiling process ended: exit code 7"),
        ("lacking", "args lack y_ptr, n, scale, flag, bias_ptr, BLOCK"),
        ("extra", "has no parameter m"),
    ],
)
def test_failure_is_a_row_with_its_reason(items: dict[str, Audited], case: str, reason: str) -> None:
    row = items[case].row
    assert row.status == "error"
    assert reason in row.reason
    assert "\n" not in row.reason


def test_worker_is_replaced_after_a_crash(items: dict[str, Audited]) -> None:
    assert items["after"].row.status == "ok"


def test_second_run_reads_the_cache(items: dict[str, Audited], cache: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    again = audit([KERNELS], "broken/good/*", [90], 1, cache)
    assert again[0].row == items["good"].row
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    # good and after are the same code with the same arguments.
    assert len([path for path in files if path.name.endswith(".json.gz")]) == 4
    assert len([path for path in files if path.name.endswith(".counts.gz")]) == 4


def test_nested_kernels_are_refused() -> None:
    def inner() -> None:
        pass

    with pytest.raises(ValueError, match="top level of a module"):
        reference(inner)


def test_patterns_choose_launches(tmp_path: Path) -> None:
    chosen = registry.launches([KERNELS], 90, "*/good/*,*/one/*")
    assert [launch.case for launch in chosen] == ["good", "one"]
    assert [launch.case for launch in registry.launches([KERNELS], 90, "huge")] == ["huge"]
    with pytest.raises(InputError, match="no launch on sm_90 matches 'nothing'; there are broken/after/fwd/fp32"):
        registry.launches([KERNELS], 90, "nothing")


def test_bad_registrations_are_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(InputError, match="audit_launches"):
        registry.launches([str(empty)], 90)
    with pytest.raises(InputError, match="cannot import kernels from 'no_such_package'"):
        registry.launches(["no_such_package"], 90)
    with pytest.raises(InputError, match="no kernel file"):
        registry.launches([str(tmp_path / "absent.py")], 90)
    with pytest.raises(InputError, match="allowed: sm_80, sm_86, sm_89, sm_90, sm_100"):
        parse_arch("hopper")
    twice = tmp_path / "twice.py"
    twice.write_text(Path(KERNELS).read_text().replace('"after", **GOOD', '"good", **GOOD'))
    with pytest.raises(InputError, match="two launches are called broken/good/fwd/fp32"):
        registry.launches([str(twice)], 90)


def test_command_line_prints_the_table_and_exits_by_verdict(
    command: Command, cache: Path, items: dict[str, Audited], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITBENCH_CACHE", str(cache))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command("audit", "--kernels", KERNELS, "--arch", "sm_90", "--processes", "1", *arguments)

    good = call("--kernel", "broken/good/*", "--out", str(tmp_path / "a.csv"), "--accept", str(tmp_path / "base"))
    assert good.returncode == 0, good.stderr
    assert "broken/good/fwd/fp32" in good.stdout
    assert (tmp_path / "a.csv").read_text().count("\n") == 2
    gate = call("--kernel", "broken/good/*", "--baseline", str(tmp_path / "base"))
    assert (gate.returncode, gate.stdout.splitlines()[-1]) == (0, "same: 1 launches compared: 1 same")
    three = ("--kernel", "good,one,huge")
    assert call(*three, "--accept", str(tmp_path / "three")).returncode == 0
    parts = [call(*three, "--baseline", str(tmp_path / "three"), "--part", f"{k}/2") for k in (1, 2)]
    said = [re.search(r"^same: (\d) launches compared", part.stdout, re.MULTILINE) for part in parts]
    assert sum(int(found[1]) for found in said if found) == 3, [part.stdout + part.stderr for part in parts]
    assert {part.returncode for part in parts} == {0}
    assert call("--kernel", "odd block").returncode == 1
    absent = call("--kernel", "nothing")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    shown = call("--show", "broken/good/*")
    assert "what to try:" in shown.stdout
    compiled = call("--compile-only", "--kernel", "good,odd block")
    assert compiled.returncode == 1
    assert "broken/odd block/fwd/fp32/sm_90: " in compiled.stdout
    assert re.search(r"sm_90 triton \S+: 1 launches compiled, 0 with a fault", compiled.stdout)
    text = (tmp_path / "a.csv").read_text().replace(",-,", ",,")
    fields = dict(zip(*csv.reader(text.splitlines()), strict=True)) | {"matrix_instruction": "HGMMA"}
    (tmp_path / "b.csv").write_text(",".join(fields) + "\n" + ",".join(fields.values()) + "\n")
    weaker = call("--compile-only", "--kernel", "good", "--baseline", str(tmp_path / "b.csv"))
    assert weaker.returncode == 1
    assert "multiplies matrices by none, where the baseline has HGMMA" in weaker.stdout
    assert call("--compile-only", "--kernel", "good", "--baseline", str(tmp_path / "base")).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "sm_95"), "allowed: sm_80, sm_86, sm_89, sm_90, sm_100"),
        (("--kernel", "brokn"), "did you mean broken"),
        (("--kernels", "absent.py"), "no kernel file absent.py"),
        (("--baseline", "absent"), "absent does not exist"),
        (("--validate", "absent.csv"), "absent.csv does not exist"),
        (("--triton", "absent"), "holds no triton package"),
        (("--processes", "-1"), "count of 1 or more"),
        (("--compile-only", "--show", "good"), "--compile-only counts nothing"),
        (("--markdown", "a.md"), "give --baseline too"),
    ],
)
def test_bad_input_says_what_would_be_right(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, ["audit", "--kernels", KERNELS, *arguments])
    assert isinstance(done.exception, InputError), done.output
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def test_compiling_only_gives_resources_and_no_counts(items: dict[str, Audited], cache: Path, tmp_path: Path) -> None:
    (light,) = audit([KERNELS], "broken/good/*", [90], 1, tmp_path, counted=False)
    full = items["good"].row
    assert light.row.status == "compiled"
    assert light.profile is None
    assert (light.row.registers, light.row.spill_bytes, light.row.shared_bytes, light.row.occupancy) == (
        full.registers, full.spill_bytes, full.shared_bytes, full.occupancy,
    )  # fmt: skip
    assert light.row.modelled_us == 0.0
    # The whole record serves the light question too; the light one does not serve the whole.
    before = set(cache.iterdir())
    assert audit([KERNELS], "broken/good/*", [90], 1, cache, counted=False)[0].row == light.row
    assert set(cache.iterdir()) == before
    assert audit([KERNELS], "broken/good/*", [90], 1, tmp_path)[0].row == full
