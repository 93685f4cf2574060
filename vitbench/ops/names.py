"""The implementations by name. Imports no torch."""

from __future__ import annotations

IMPLS = ("eager", "sdpa", "flex", "compile", "max-autotune", "fused", "fused+compile")


#: Implementations that torch.compile builds, in whole or in part, at their first call.
COMPILED = ("compile", "max-autotune", "flex", "fused+compile")


#: Of those, the ones whose whole model goes through torch.compile.
WHOLLY_COMPILED = ("compile", "max-autotune", "fused+compile")
