"""Texts as names of files: of one folder, short, and such as every system can hold. Imports no torch."""

from __future__ import annotations

import re

_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


def file_name(text: str, longest: int = 80) -> str:
    """A name for a file without its ending, which leads to no other folder, whatever the text is."""
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.")[:longest].rstrip("-.") or "unnamed"
    return f"_{name}" if _DEVICES.fullmatch(name) else name  # devices on Windows


__all__ = ["file_name"]
