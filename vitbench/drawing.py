"""Whether pictures can be drawn here, and how a chart becomes files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

INSTALL = "pip install altair vl-convert-python"


def plotting_missing() -> bool:
    """Whether the plotting packages are not installed; a measuring machine may lack them."""
    return any(importlib.util.find_spec(name) is None for name in ("altair", "vl_convert"))


def save(chart: Any, stem: Path) -> list[Path]:
    """Writes a chart as stem.png and stem.svg, without a browser."""
    files = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    for path in files:
        chart.save(str(path), **({"ppi": 144} if path.suffix == ".png" else {}))
        if path.suffix == ".png":
            _shrink(path)
    return files


def _shrink(path: Path) -> None:
    """A chart has few colours: with a table of them the file is a fraction of the size."""
    from PIL import Image

    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(128)
    few.save(path, optimize=True)


__all__ = ["INSTALL", "plotting_missing", "save"]
