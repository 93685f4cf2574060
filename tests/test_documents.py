"""Numbers in documents come from committed results, and what documents name is there."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

from vitbench.readme import fill

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]


def test_readme_tables_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table:") == 2
    assert text.count("<!-- verdict:") == 1
    assert text.count("<!-- certified:") == 1
    assert text.count("<!-- kernel times:") == text.count("<!-- memory:") == 1
    assert fill(text, ROOT) == text, "run `make readme`"


def test_table_of_kernels_is_the_audits() -> None:
    """Empty until there is a committed audit to make it from."""
    page = ROOT / "kernels" / "README.md"
    text = page.read_text(encoding="utf-8")
    [(audit, table)] = re.findall(r"<!-- kernels: (\S+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    if (page.parent / audit).exists():
        assert fill(text, page.parent) == text, "run `make readme`"
    else:
        assert table == ""


def test_readme_links_and_pictures_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(linked) >= 5
    assert [name for name in linked if not (ROOT / name).exists()] == []


def test_no_package_called_kernels() -> None:
    """It would shadow or collide with the `kernels` package of the package index."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    found = importlib.util.find_spec("kernels")
    assert found is None or found.origin is None


def prose(path: Path) -> str:
    """The comments and docstrings of a Python file; any other file whole."""
    if path.suffix != ".py":
        return path.read_text(encoding="utf-8")
    with tokenize.open(path) as file:
        found = [token.string for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return "\n".join(found + [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)])


def names_in(path: Path) -> set[str]:
    """The top-level names of a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.alias(name=name, asname=other):
                found.add(other or name)
    return found


def missing_module(name: str) -> bool:
    """Whether a dotted name stands for no module of ours, and for nothing in one."""
    place = ROOT / "kernels" if name.startswith("vitkernels") else ROOT
    first, *rest = name.split(".")
    place /= first
    while rest and ((place / rest[0]).is_dir() or (place / f"{rest[0]}.py").exists()):
        place /= rest.pop(0)
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return bool(rest) and rest[0] not in names_in(source)


# What commands write, what a reader writes, and other projects' files.
NOT_OURS = {
    *("summary.md", "OUT/summary.md", "verdict.md"),
    *(".github/workflows/kernels.yml", ".gitlab-ci.yml"),
    "benchmark.py",
    *("kernels/__init__.py", "vitbench.no_such_module"),  # must not be
}


def wrongly_named(path: Path, tracked: list[str]) -> list[str]:
    """The files and modules that a file's prose names and that are not there; a folder may be left out, not added."""
    text = prose(path)
    # Not what only ends so: a wildcard, a name in braces, a file of a folder that the reader chooses.
    files = set(re.findall(r"(?<![\w/.*{}<>$~-])(?:\.\./|\.)?\w[\w./-]*\.(?:py|md|toml|yml)\b", text))
    # Modules also in code, where programs in strings and names to be patched are all that no other tool checks.
    modules = set(re.findall(r"(?<![\w.:/-])(?:vitbench|vitkernels)(?:\.\w+)+", path.read_text(encoding="utf-8")))
    lost = [
        name
        for name in files - NOT_OURS
        if not (path.parent / name).exists() and not any(f"/{known}".endswith(f"/{name}") for known in tracked)
    ]
    return sorted(lost) + sorted(name for name in modules - files - NOT_OURS if missing_module(name))


def test_files_and_modules_that_are_named_exist() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    tracked = [name for name in listed if (ROOT / name).exists()]
    papers = [name for name in tracked if name.endswith((".py", ".md", ".yml", ".toml")) or "." not in Path(name).name]
    old = {"CHANGELOG.md", Path(__file__).relative_to(ROOT).as_posix()}  # tells of the past, and of what is wrong
    wrong = {name: lost for name in papers if name not in old and (lost := wrongly_named(ROOT / name, tracked))}
    assert wrong == {}


def test_a_wrong_name_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`bench/plan.py`, then bench/none.py; vitbench.errors.InputError, not vitbench.objective or vitkernels.Lunch"
    )
    assert wrongly_named(page, ["vitbench/bench/plan.py"]) == [
        "bench/none.py",
        "vitbench.objective",
        "vitkernels.Lunch",
    ]
