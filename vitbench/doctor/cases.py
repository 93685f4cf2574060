"""Which cases `vitbench doctor --deep` launches kernels at. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tried:
    """A case of an operation, small, and the passes in which it is tried.

    `wide` ones have the programs of a whole GPU, since their kernels are for nothing less.
    """

    op: str
    what: str
    case: dict[str, Any]
    passes: tuple[str, ...] = ("fwd+bwd",)
    wide: bool = False


#: Together they launch every kernel that fp16 runs on sm_90; see the test.
TRIED = (
    Tried("bias_attention", "49 keys: scores held", {"B": 2, "H": 2, "N": 49, "M": 49, "D": 32}),
    Tried("bias_attention", "one tile of keys", {"B": 2, "H": 2, "N": 80, "M": 49, "D": 32}),
    Tried("bias_attention", "96 keys", {"B": 2, "H": 2, "N": 96, "M": 96, "D": 32}),
    Tried("bias_attention", "224 keys", {"B": 2, "H": 1, "N": 70, "M": 224, "D": 32}),
    Tried("bias_attention", "a padded bias", {"B": 64, "H": 4, "N": 257, "M": 257, "D": 32}, wide=True),
    Tried("relative_attention", "5 x 6", {"B": 2, "H": 2, "grid": (5, 6), "D": 32}),
    Tried("relative_attention", "queries held", {"B": 192, "H": 2, "grid": (7, 10), "D": 32}, wide=True),
    Tried("gated_attention", "49 tokens", {"B": 2, "H": 2, "N": 49, "D": 48}),
    Tried("reduced_attention", "the whole block", {"B": 2, "C": 32, "h": 4, "heads": 2, "r": 2}, ("fwd",)),
    Tried("depthwise_conv2d", "3 x 3", {"B": 2, "C": 16, "H": 8, "W": 8, "k": 3, "padding": 1, "residual": "pre"}),
    Tried("depthwise_conv2d", "3 x 3, stride 2", {"B": 2, "C": 16, "H": 8, "W": 8, "k": 3, "stride": 2, "padding": 1}),
)  # fmt: skip
