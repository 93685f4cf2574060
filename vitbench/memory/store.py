"""Predictions are kept for the next call: by model and options, by this code's text and by torch's version."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vitbench.cache import cache_folder
from vitbench.memory.setting import Limit, Setting

_LIBRARIES = ("torch", "timm", "torchvision", "transformers")
_KEPT = 4


def folder() -> Path:
    """Where predictions of this code lie."""
    return cache_folder("memory") / fingerprint()


@cache
def fingerprint() -> str:
    """Changes with whatever can change a prediction: our code, the kernels' code, torch, libraries of models."""
    digest = hashlib.sha256(platform.python_version().encode())
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    here = Path(__file__)
    roots = [here.parents[1] / room for room in ("models", "ops", "trace", "variant.py")]
    roots += [here.with_name(f"{name}.py") for name in ("setting", "work", "recording", "allocator", "find", "largest")]
    kernels = importlib.util.find_spec("vitkernels")
    if kernels is not None and kernels.origin is not None:
        roots.append(Path(kernels.origin).parent)
    for root in roots:
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def folder_of(room: str, code: Sequence[Path]) -> Path:
    """Where answers of another room lie, which depend on its code too."""
    return folder().parents[1] / room / _with(fingerprint(), tuple(code))


@cache
def _with(known: str, code: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(known.encode())
    for path in code:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def name_of(setting: object, config: str = "") -> str:
    """The file of an answer in its room's folder; `config` is a file whose content decides it too."""
    digest = hashlib.sha256(repr(setting).encode())
    with contextlib.suppress(OSError):
        digest.update(Path(config).read_bytes())
    return digest.hexdigest()[:24] + ".json"


def _path(setting: Setting) -> Path:
    return folder() / name_of(setting, setting.variant.config)


def read(setting: Setting) -> dict[str, Any]:
    """What was kept of a setting; nothing where there is none, or it cannot be read."""
    return read_file(_path(setting))


def write(setting: Setting, kept: dict[str, Any]) -> None:
    """Keeps it; where no file can be written the next call predicts anew."""
    write_file(_path(setting), kept)


def read_file(path: Path) -> dict[str, Any]:
    """What `write_file` kept there; nothing where there is none, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    return {}


def write_file(path: Path, kept: dict[str, Any]) -> None:
    """Keeps it, whole or not at all; folders beside the file's are old codes', of which the last few are left."""
    with contextlib.suppress(OSError):
        if not path.parent.exists():
            _forget_old(path.parent.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(kept, file)
        os.replace(file.name, path)


def is_known(kept: dict[str, Any], batches: Sequence[int], workspace: int, limits: Sequence[Limit]) -> bool:
    """Whether all that is asked is in what was kept of a setting."""
    if kept.get("reason"):
        return True
    at, largest, fits = (kept.get(name, {}) for name in ("peaks", "largest", "fits"))
    return (
        all(f"{batch}/{workspace}" in at for batch in batches)
        and all(limit.key in largest for limit in limits[:1])
        and all(f"{batch}/{limit.key}" in fits for batch in batches for limit in limits)
    )


def _forget_old(parent: Path) -> None:
    """Leaves the predictions of the codes that were used last."""
    old = sorted((one for one in parent.glob("*") if one.is_dir()), key=lambda one: one.stat().st_mtime)
    for one in old[: -_KEPT + 1]:
        for path in one.glob("*"):
            path.unlink()
        one.rmdir()


__all__ = ["fingerprint", "folder", "folder_of", "is_known", "name_of", "read", "read_file", "write", "write_file"]
