"""Names and reasons of others in Markdown, as a parser of it reads them."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from vitbench.gate import verdicts
from vitbench.gate.compare import Change, Comparison
from vitbench.markdown import code, plain, table

pytestmark = pytest.mark.fast

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = (
    "a|b",
    "<script>alert(1)</script> & &lt;",
    "*bold* _italic_ __strong__ ~~gone~~ `code` $x$",
    "[click](https://example.org) ![picture](x.png) <https://example.org>",
    "[ref]: https://example.org",
    "see [ref] and [other][ref] and op[1]",
    "back\\|slash \\ at the end\\",
    "two\nlines\r\n| a | row |",
    "vit_base_patch16_224/eager/infer",
)


class Cells(HTMLParser):
    """The text of every cell, and the tags inside of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.inside: list[str] = []
        self.open = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "td":
            self.open = True
            self.texts.append("")
        elif self.open:
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.open = self.open and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[-1] += data


def cells_of(text: str) -> Cells:
    found = Cells()
    found.feed(PARSER.render(text))
    return found


def test_what_others_wrote_stays_text_in_one_cell() -> None:
    found = cells_of("\n".join(table(["name", "n"], [[plain(text), "1"] for text in HOSTILE], right=["n"])))
    assert found.texts[::2] == [" ".join(text.split()) for text in HOSTILE]
    assert found.inside == []


def test_a_list_of_them_is_a_list_of_text() -> None:
    shown = PARSER.render("\n".join(f"- {plain(text)}" for text in HOSTILE))
    assert shown.count("<li>") == len(HOSTILE)
    assert not any(tag in shown for tag in ("<a ", "<img", "<em", "<strong", "<s>", "<code", "<script", "<table"))
    assert plain("op[1] of vit_base_patch16_224") == "op[1] of vit_base_patch16_224"


def test_code_is_code_only_where_it_stays_in_its_cell() -> None:
    found = cells_of("\n".join(table(["key"], [[code(text)] for text in ("a/b/c", "a|b", "a`b")])))
    assert found.texts == ["a/b/c", "a|b", "a`b"]
    assert found.inside == ["code"]


def test_verdicts_of_hostile_cases_are_a_table_and_nothing_else() -> None:
    changes = [Change(text, "time", "ms", "slower", 0.05, note=text) for text in HOSTILE]
    found = cells_of(verdicts.markdown(Comparison(changes, differences=[HOSTILE[1]])))
    shown = [" ".join(text.split()) for text in HOSTILE]
    assert found.texts[1 :: len(verdicts.COLUMNS)] == shown
    assert found.texts[len(verdicts.COLUMNS) - 1 :: len(verdicts.COLUMNS)] == shown
    assert found.inside == []
    assert "<script" not in PARSER.render(verdicts.markdown(Comparison(changes, differences=[HOSTILE[1]])))
