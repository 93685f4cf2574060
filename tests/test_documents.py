"""Numbers in documents come from committed results, and what documents name is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from vitbench.readme import fill

ROOT = Path(__file__).parents[1]


def test_readme_tables_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table:") == 2
    assert text.count("<!-- verdict:") == 1
    assert text.count("<!-- certified:") == 1
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
