"""Which wheels a machine lacks, how much they may weigh, and that they unpack without pip."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from vitbench.certify import wheels
from vitbench.errors import InputError


def test_what_is_needed_is_closed_and_leaves_out_what_is_there(timm: object) -> None:
    versions = wheels.needed(wheels.roots())
    assert {"pandas", "typer", "rich", "nvidia-ml-py", "safetensors", "timm", "pytest"} <= set(versions)
    assert {"pluggy", "huggingface-hub", "pyyaml"} <= set(versions), "what requirements require"
    assert not {"torch", "triton", "numpy", "colorama", "exceptiongroup"} & set(versions)
    assert not [name for name in versions if name.startswith("nvidia-") and name != "nvidia-ml-py"]


def test_torchvision_follows_torch() -> None:
    assert wheels.torchvision_for("2.11") == "0.26.0"
    assert wheels.torchvision_for("2.13.0") == "0.28.0"
    with pytest.raises(InputError, match="not a version of torch"):
        wheels.torchvision_for("latest")


def test_too_much_is_one_line_with_the_largest(tmp_path: Path) -> None:
    (tmp_path / "big.whl").write_bytes(b"x" * 2**21)
    (tmp_path / "small.whl").write_bytes(b"x" * 2**20)
    assert wheels.check_size(tmp_path) == 3
    with pytest.raises(InputError, match=r"take 3.0 MiB, more than 2.5 MiB; the largest: big.whl 2.0, small.whl 1.0"):
        wheels.check_size(tmp_path, 2.5)


def test_it_writes_wheels_and_how_to_use_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], timm: object
) -> None:
    def download(versions: dict[str, str], out: Path) -> None:
        assert versions["torchvision"] == "0.26.0"
        with zipfile.ZipFile(out / "carried-1-py3-none-any.whl", "w") as archive:
            archive.writestr("carried.py", "ANSWER = 42\n")

    monkeypatch.setattr(wheels, "download", download)
    out = tmp_path / "with space"
    assert wheels.main([str(out)]) == 0
    assert "1 wheels, 0.0 MiB" in capsys.readouterr().out
    program = f'eval "$(sh "{out}/install.sh")" && python3 -c "import carried; print(carried.ANSWER)"'
    assert subprocess.run(["sh", "-c", program], capture_output=True, text=True).stdout == "42\n"
    assert wheels.main([str(out)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_a_failing_pip_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], timm: object
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: No matching distribution found for x==1\n")
    monkeypatch.setattr("vitbench.certify.wheels.subprocess.run", lambda *_, **__: failed)
    assert wheels.main([str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "vitbench: pip download failed: ERROR: No matching distribution found for x==1\n"
