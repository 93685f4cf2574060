"""Finds the launches that kernel modules describe (`audit_launches`, see `vitkernels.Launch`)."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from vitkernels import Launch

from vitbench.errors import InputError
from vitbench.patterns import matches


def modules(names: Sequence[str]) -> list[ModuleType]:
    """The modules named, and every submodule of those that are packages; a name may be a path to a .py file.

    Raises: InputError when one cannot be imported.
    """
    found: list[ModuleType] = []
    for name in names:
        module = _from_file(Path(name)) if name.endswith(".py") else _from_name(name)
        found.append(module)
        for info in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
            found.append(_from_name(info.name))
    return found


@contextmanager
def _told(doing: str, file: str) -> Iterator[None]:
    """Whatever a user's module raises, in one line, with the line of that module that it comes from."""
    try:
        yield
    except InputError:
        raise
    except Exception as problem:
        lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == file]
        where = f" (line {lines[-1]} of {file})" if lines else ""
        raise InputError(f"{doing}: {type(problem).__name__}: {problem}{where}") from problem


def _from_name(name: str) -> ModuleType:
    with _told(f"cannot import kernels from {name!r}", ""):
        return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    name = "vitbench_kernels_" + path.stem
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if not path.exists() or spec is None or spec.loader is None:
        raise InputError(f"no kernel file {path}; give a module name or the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _told(f"cannot import kernels from {path}", str(path.resolve())):
        spec.loader.exec_module(module)
    return module


def launches(names: Sequence[str], arch: int, pattern: str = "*") -> list[Launch]:
    """Launches on sm_<arch> whose id (op/case/pass/dtype) matches a comma-separated list of wildcards.

    A pattern without wildcard matches any part of the id.

    Raises: InputError when nothing is registered, nothing matches, or two launches share an id.
    """
    registered: list[Launch] = []
    for module in modules(names):
        describe = getattr(module, "audit_launches", None)
        # A package may re-export the function; only the module that defines it counts.
        if callable(describe) and describe.__module__ == module.__name__:
            with _told(f"{module.__name__}.audit_launches({arch}) failed", module.__file__ or ""):
                registered.extend(describe(arch))
    if not registered:
        raise InputError(f"no module of {', '.join(names)} has audit_launches(arch) with launches for sm_{arch}")
    seen: set[str] = set()
    for launch in registered:
        if launch.id in seen:
            raise InputError(f"two launches are called {launch.id}; give them different cases or passes")
        seen.add(launch.id)
    chosen = [launch for launch in registered if matches(launch.id, pattern)]
    if not chosen:
        raise InputError(f"no launch on sm_{arch} matches {pattern!r}; {_suggestion(pattern, sorted(seen))}")
    return chosen


def _suggestion(pattern: str, ids: list[str]) -> str:
    names = {*ids, *(piece for name in ids for piece in name.split("/"))}
    pieces = [piece.strip("*") for part in pattern.split(",") for piece in (part, *part.split("/"))]
    close = {match: None for piece in pieces for match in difflib.get_close_matches(piece, names, n=2)}
    return f"did you mean {' or '.join(close)}?" if close else f"there are {_some(ids)}"


def _some(names: Iterable[str], count: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
