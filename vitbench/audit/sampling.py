"""Which programs of a grid stand for all: short axes whole, long ones in strata."""

from __future__ import annotations

import math
from collections.abc import Sequence

_GOLDEN = 0.6180339887498949


def spread(axes: Sequence[int], limit: int) -> list[tuple[int, int, int]]:
    """At most about `limit` grid points: short axes whole, long ones in strata, jittered against periods."""
    kept = list(axes)
    while math.prod(kept) > limit:
        longest = max(range(3), key=lambda axis: kept[axis])
        others = math.prod(kept) // kept[longest]
        kept[longest] = max(1, limit // others, kept[longest] // 2 if others > 1 else 1)
    x, y, z = (_strata(n, m) for n, m in zip(axes, kept, strict=True))
    return [(i, j, k) for k in z for j in y for i in x]


def _strata(extent: int, count: int) -> list[int]:
    return [k if count >= extent else int((k + k * _GOLDEN % 1) * extent / count) for k in range(count)]
