"""Numbers in documents come from committed results, and what documents name is there."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from vitbench.cli import app
from vitbench.readme import KINDS, fill

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]


PAGES = [ROOT / "README.md", ROOT / "kernels/README.md", ROOT / "results/README.md", *sorted(ROOT.glob("docs/*.md"))]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = text_of(page)
    assert fill(text, page.parent) == text, "run `make readme`"


def test_every_kind_of_table_is_shown() -> None:
    shown = {kind for page in PAGES for kind in re.findall(r"<!-- ([a-z ]+): ", text_of(page))}
    assert shown == {*KINDS}
    readme = re.findall(r"<!-- ([a-z ]+): ", text_of(PAGES[0]))
    assert {"table", "standouts", "memory", "throughput errors", "kernel times"} <= set(readme)


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    anchors = [anchor(heading) for heading in re.findall(r"^#+ (.+)", text, re.MULTILINE)]
    linked = re.findall(r"\]\(([^):]+)\)", text)
    assert len(linked) >= 20 or page != PAGES[0]
    lost = [
        name
        for name in linked
        if not (name[1:] in anchors if name.startswith("#") else (page.parent / name.partition("#")[0]).exists())
    ]
    assert lost == []


def commands_of(page: Path, name: str) -> list[list[str]]:
    """The words of every command of that name among a page's indented lines, what is said behind it left out."""
    text = re.sub(r"\\\n\s*", "", text_of(page))
    lines = re.findall(rf"^    ({name} .+)", text, re.MULTILINE)
    return [shlex.split(re.split(r" {2,}|\s#", line)[0]) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_targets_are_there(page: Path) -> None:
    """Every option that a page gives to a command is one, and every target that it makes."""
    program = get_command(app)
    found = [words for name in ("vitbench", "make") for words in commands_of(page, name)]
    assert len(found) > 20 or page != PAGES[0]
    targets = set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:(?!=)", text_of(ROOT / "Makefile"), re.MULTILINE))
    for name, first, *rest in found:
        if name == "make":
            assert first in targets | {"test-oldest", "test-newest"}, (page, first)
        else:
            command = program.commands[first]  # type: ignore[attr-defined]
            command.make_context(first, rest)


def snippets() -> Iterator[Any]:
    for page in PAGES:
        for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)):
            yield pytest.param(code, id=f"{name_of(page)}-{number}")


@pytest.mark.parametrize("code", list(snippets()))
def test_python_of_the_documents_runs(
    code: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU as a reader's does: without Triton's interpreter, in which other tests run the kernels."""
    monkeypatch.setattr("vitkernels.runtime.device.INTERPRETED", False)
    if "import timm" in code:
        request.getfixturevalue("timm")
    exec(compile(code, "snippet", "exec"), {})


def test_the_table_of_faults_is_that_of_the_tests() -> None:
    """What is injected and what survives; that it does, `make fault-table` writes after running them."""
    calls = (
        node
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "fault"
    )
    told = {tuple(arg.value for arg in call.args[:3] if isinstance(arg, ast.Constant)) for call in calls}
    lines = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    tabled = {tuple(cell.strip() for cell in line.split("|")[1:4]) for line in lines if line.startswith("| ")}
    assert len(told) > 20
    assert told == tabled - {("fault", "injected", "survives"), ("---", "---", "---")}, "run `make fault-table`"


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
