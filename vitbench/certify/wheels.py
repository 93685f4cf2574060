"""`make wheels OUT=DIR`: what a GPU machine lacks to certify, as wheels to carry there (Python 3.12, Linux x86_64).

The machine has torch, triton and numpy. Versions are those installed here, so run it in the environment that passes the
tests; torchvision, which timm imports, follows the torch of the machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vitbench.errors import InputError

LIMIT_MIB = 60.0
#: Beside vitbench's own requirements: the kernels' tests, and Swin.
EXTRA = ("pytest", "pytest-benchmark", "hypothesis", "timm")
#: On the machine already.
THERE = ("torch", "triton", "numpy")
_PYTHON = "3.12"
_TARGET = {
    "python_version": _PYTHON,
    "python_full_version": f"{_PYTHON}.0",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
    "os_name": "posix",
}
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_INSTALL = """\
#!/bin/sh
# Unpacks the wheels beside this file into a folder, without pip and without network, and prints how to use them:
#   eval "$(sh install.sh [FOLDER])"
here=$(cd "$(dirname "$0")" && pwd)
into=${1:-$here/site}
mkdir -p "$into"
for wheel in "$here"/*.whl; do
  "${PYTHON:-python3}" -m zipfile -e "$wheel" "$into" || exit 1
done
echo "export PYTHONPATH='$into':\\"\\$PYTHONPATH\\""
"""


def _is_there(name: str) -> bool:
    return name in THERE or (name.startswith("nvidia-") and name != "nvidia-ml-py")


def needed(roots: Sequence[str]) -> dict[str, str]:
    """Versions by name of requirements and all that they require on the machine, without what is there.

    Raises: InputError when one is not installed here.
    """
    found: dict[str, str] = {}
    waiting = [Requirement(root) for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if _is_there(name) or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise InputError(f"{name} is not installed here, so its version is not known; run `make setup`") from error
        found[name] = distribution.version
        waiting += [one for text in distribution.requires or () if _applies(one := Requirement(text), extras)]
    return found


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**_TARGET, "extra": extra}) for extra in ("", *extras))


def roots() -> list[str]:
    """vitbench's requirements, without those of other systems, and EXTRA."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    declared = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [*declared, *EXTRA]


def torchvision_for(torch: str) -> str:
    """The torchvision that was released with a torch: 0.26.0 for 2.11.

    Raises: InputError when it is not a version of torch 2.
    """
    major, _, minor = torch.partition(".")
    if major != "2" or not minor.partition(".")[0].isdigit():
        raise InputError(f"--torch {torch!r} is not a version of torch such as 2.11")
    return f"0.{int(minor.partition('.')[0]) + 15}.0"


def _pip(arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise InputError(f"pip {arguments[0]} failed: {(lines or done.stderr.splitlines() or ['no reason given'])[-1]}")


def download(versions: dict[str, str], out: Path) -> None:
    """Puts a wheel of each into a folder.

    Raises: InputError when pip cannot reach an index or an index has no such wheel.
    """
    platforms = [option for platform in _PLATFORMS for option in ("--platform", platform)]
    pinned = [f"{name}=={version}" for name, version in sorted(versions.items())]
    target = ["--only-binary=:all:", "--python-version", _PYTHON, "--implementation", "cp", *platforms]
    _pip(["download", "--no-deps", *target, "--dest", str(out), *pinned])


def sizes(out: Path) -> Iterator[tuple[str, float]]:
    """Name and size in MiB of each wheel, largest first."""
    yield from sorted(((path.name, path.stat().st_size / 2**20) for path in out.glob("*.whl")), key=lambda one: -one[1])


def check_size(out: Path, limit_mib: float = LIMIT_MIB) -> float:
    """The MiB of all wheels.

    Raises: InputError naming the largest when they are more than the limit.
    """
    found = list(sizes(out))
    total = sum(size for _, size in found)
    if total > limit_mib:
        largest = ", ".join(f"{name} {size:.1f}" for name, size in found[:3])
        raise InputError(f"the wheels take {total:.1f} MiB, more than {limit_mib:g} MiB; the largest: {largest}")
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vitbench.certify.wheels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="an empty or new folder")
    parser.add_argument("--torch", default="2.11", help="the machine's torch, for the torchvision beside it")
    given = parser.parse_args(arguments)
    out: Path = given.out
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is not an empty folder; give another OUT")
        versions = needed(roots()) | {"torchvision": torchvision_for(given.torch)}
        out.mkdir(parents=True, exist_ok=True)
        download(versions, out)
        total = check_size(out)
    except InputError as error:
        print(f"vitbench: {error}", file=sys.stderr)
        return 2
    (out / "install.sh").write_text(_INSTALL, encoding="utf-8")
    print(f"{len(list(out.glob('*.whl')))} wheels, {total:.1f} MiB, in {out}")
    print(f'there: eval "$(sh {out.name}/install.sh)" && make certify VENV= PYTHON=python3 BUDGET=540 OUT=certify')
    return 0


if __name__ == "__main__":
    sys.exit(main())
