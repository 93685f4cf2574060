"""Where what was found out is kept for the next call."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Under XDG_CACHE_HOME, or ~/.cache; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache"
    return Path(home) / "vitbench" / name


__all__ = ["cache_folder"]
