"""Implementations by name."""

from __future__ import annotations

from vitbench.ops.bundle import EAGER, FLEX, SDPA, Ops


def ops_for(impl: str) -> Ops:
    """The bundle behind an implementation's name; "compile" and "max-autotune" compile the eager one, "fused+compile"
    the fused one."""
    if impl.startswith("fused"):
        from vitbench.ops.fused import FUSED  # needs triton, which not every platform has

        return FUSED
    return {"eager": EAGER, "sdpa": SDPA, "flex": FLEX, "compile": EAGER, "max-autotune": EAGER}[impl]
