"""What commands choose from: models by name and wildcard, sizes, batches, dtypes and modes. Imports no torch.

Models are vitbench's own from the catalog, and those of other libraries.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from vitbench.catalog import CatalogEntry, Resolution, catalog, format_resolution, parse_resolution, published
from vitbench.errors import InputError, nearest

MODES = ("infer", "train")
DTYPES = ("fp32", "tf32", "bf16", "fp16", "amp")
LAYOUTS = ("nchw", "nhwc")
#: No number on a command line has more digits, and no range more sizes.
_DIGITS, _SIZES = 9, 10_000


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


#: What timm and torch call these values; timm's "both" modes are two of ours.
SYNONYMS = {
    "float": "fp32", "float32": "fp32", "half": "fp16", "float16": "fp16", "bfloat16": "bf16",
    "channels_last": "nhwc", "channels_first": "nchw", "contiguous_format": "nchw",
    "inductor": "compile", "inference": "infer", "training": "train", "both": "infer,train",
}  # fmt: skip


def split(text: str, option: str, allowed: Sequence[str]) -> list[str]:
    """Comma-separated values, each one of `allowed` or a synonym of it, without repeats.

    Raises: InputError naming the nearest allowed value.
    """
    words = [value.strip() for value in text.split(",")]
    plain = ",".join(SYNONYMS.get(word.removeprefix("torch.").lower(), word) for word in words if word)
    values = list(dict.fromkeys(plain.split(","))) if plain else []
    if not values:
        raise InputError(f"{option} is empty; allowed: {', '.join(allowed)}")
    for value in values:
        if value not in allowed:
            raise InputError(f"{option} {value!r} is unknown: {nearest(value, allowed)}")
    return values


def split_batches(text: str) -> list[int]:
    """Comma-separated positive whole numbers, without repeats.

    Raises: InputError.
    """
    values = [value.strip() for value in text.split(",") if value.strip()]
    for value in values or [text]:
        if not re.fullmatch(rf"[0-9]{{1,{_DIGITS}}}", value) or int(value) < 1:
            raise InputError(f"batch {value!r} is not a positive whole number of at most {_DIGITS} digits")
    return list(dict.fromkeys(int(value) for value in values))


def split_resolutions(text: str) -> list[str]:
    """Comma-separated sizes, ranges such as "224..512:32" (without a step: 32), "native", or factors such as "x0.75".

    Raises: InputError.
    """
    words = [value.strip().lower() for value in text.split(",") if value.strip()]
    values = list(dict.fromkeys(size for word in words for size in _sizes(word)))
    if not values:
        raise InputError("resolution is empty; give a size such as 224, HEIGHTxWIDTH, or native")
    for value in values:
        if value == "native":
            continue
        factor = re.fullmatch(r"x([0-9]{1,3}(?:\.[0-9]+)?|\.[0-9]+)", value)
        if not factor:
            parse_resolution(value)
        elif not float(factor[1]):
            raise InputError(f"resolution {value!r} is no size: a factor is above zero, such as x0.75")
    return values


def _sizes(word: str) -> list[str]:
    if ".." not in word:
        return [word]
    number = rf"([0-9]{{1,{_DIGITS}}})"
    found = re.fullmatch(rf"{number}\.\.{number}(?::{number})?", word)
    first, last, step = (int(part or 32) for part in found.groups()) if found else (0, 0, 0)
    if not 0 < first <= last or step < 1 or (last - first) // step >= _SIZES:
        raise InputError(f"resolution {word!r} is no range: give FIRST..LAST or FIRST..LAST:STEP, such as 224..512:32")
    return [str(size) for size in range(first, last + 1, step)]


def resolve(model: str, text: str, native: Resolution | None = None) -> Resolution:
    """The size of a model that one of `split_resolutions` means; `native` is that of another configuration.

    Raises: InputError when the model cannot take it.
    """
    known = entry(model)
    native = native or known.resolution
    if text == "native":
        return native
    if text.startswith("x"):
        step = max(known.resolution_multiple, 16)
        step = step if step % known.resolution_multiple == 0 else known.resolution_multiple
        height, width = (max(step, round(side * float(text[1:]) / step) * step) for side in native)
        return height, width
    resolution = parse_resolution(text)
    check_resolution(model, resolution)
    return resolution
