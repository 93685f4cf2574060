"""Models by name, wildcard and size: vitbench's own from the catalog, and those of other libraries."""

from __future__ import annotations

import fnmatch

from vitbench.catalog import CatalogEntry, Resolution, catalog, format_resolution, published
from vitbench.errors import InputError, nearest


def entry(name: str) -> CatalogEntry:
    """What is known of a model that can be built: of the catalog, or of another library (`timm:convnext_tiny`)."""
    if ":" not in name:
        return catalog()[name]
    from vitbench.models import foreign  # imports torch and the library

    return foreign.entry(name)


def match(patterns: str, only_published: bool = False) -> list[str]:
    """The models named by comma-separated names or wildcards, in catalog order; "all" is every model.

    `timm:`, `torchvision:` and `transformers:` before a name or wildcard mean that library's models, which come last.

    Args:
        only_published: also those of which nothing but figures is known.

    Raises: InputError naming the nearest models when a pattern matches none, or a library is missing.
    """
    names = list(published() if only_published else catalog())
    chosen: set[str] = set()
    foreign: list[str] = []
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    if not wanted:
        raise InputError("no model given: name one, or several with commas or wildcards such as 'cmt_*'")
    for pattern in wanted:
        if ":" in pattern:
            foreign += _match_foreign(pattern, only_published)
            continue
        matched = names if pattern == "all" else fnmatch.filter(names, pattern)
        if not matched and pattern in published():
            raise InputError(
                f"{pattern} cannot be built: {published()[pattern].source}; nearest: {nearest(pattern, names)}"
            )
        if not matched:
            raise InputError(f"unknown model {pattern!r}: {nearest(pattern, names)}")
        chosen.update(matched)
    return [*(name for name in names if name in chosen), *dict.fromkeys(foreign)]


def _match_foreign(pattern: str, only_published: bool) -> list[str]:
    if only_published:
        raise InputError(f"{pattern}: the list has vitbench's own models; `vitbench bench --dry-run` counts others")
    from vitbench.models import foreign

    return foreign.match(pattern)


def check_resolution(model: str, resolution: Resolution) -> None:
    """Raises: InputError with the nearest sizes that fit when the model cannot take this one."""
    multiple = entry(model).resolution_multiple
    if all(side % multiple == 0 for side in resolution):
        return
    fits = [
        format_resolution((max(1, h // multiple) * multiple, max(1, w // multiple) * multiple))
        for h, w in (resolution, (resolution[0] + multiple, resolution[1] + multiple))
    ]
    raise InputError(
        f"{model} takes multiples of {multiple} px, not {format_resolution(resolution)}; "
        f"nearest: {', '.join(dict.fromkeys(fits))}"
    )
