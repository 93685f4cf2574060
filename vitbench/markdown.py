"""Markdown of what others wrote: names and reasons that stay text, and tables. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

#: What Markdown, as GitHub reads it, takes for markup anywhere in a line; `_` only beside what is no letter or digit,
#: brackets only at the beginning, or before what makes a link of them: names such as op[1] stay as they are.
_MARKUP = re.compile(r"[\\`*|~$]|^\[|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")


def plain(text: str) -> str:
    """`text` on one line, of which no reader of Markdown takes anything for markup, HTML or the edge of a cell."""
    line = " ".join(text.split()).replace("&", "&amp;")
    if "<" in line:  # an arrow alone stays one
        line = line.replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\g<0>", line)


def code(text: str) -> str:
    """The same as code, where it has no sign that ends code or a cell."""
    return plain(text) if re.search(r"[`|\n]", text) else f"`{text}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> list[str]:
    """Lines of a table whose cells are Markdown already; the columns named by `right` are set to the right."""
    rule = ["---:" if name in right else "---" for name in header]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


__all__ = ["code", "plain", "table"]
