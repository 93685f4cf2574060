"""Wildcards that choose cases and launches on every command line."""

from __future__ import annotations

import fnmatch


def matches(name: str, pattern: str) -> bool:
    """Whether a name matches one of the comma-separated patterns; without a wildcard any part of the name does."""
    parts = [part.strip() for part in pattern.split(",") if part.strip()]
    return any(fnmatch.fnmatchcase(name, part if any(c in part for c in "*?[") else f"*{part}*") for part in parts)
