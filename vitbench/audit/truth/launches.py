"""What was launched for a published time: Liger's kernels, or those of examples/kernels with the source's blocks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from vitkernels import Launch

from vitbench.audit import registry
from vitbench.audit.truth import kernels, liger
from vitbench.audit.truth.points import Point
from vitbench.errors import InputError

_EXAMPLES = Path(__file__).parents[3] / "examples" / "kernels"


@cache
def _example(name: str) -> Any:
    (module,) = registry.modules([str(_EXAMPLES / f"{name}.py")])
    return module


def alternatives(point: Point) -> list[list[Launch]]:
    """Launches that were timed together; several such lists where the source tried several and took the fastest.

    Raises: InputError when liger-kernel is missing, or nothing here describes the kernel.
    """
    if point.kernel.startswith("liger"):
        try:
            return [[liger.launch(point)]]
        except ImportError as problem:
            raise InputError(
                f"published times of Liger's kernels need liger-kernel, pip install 'vitbench[truth]' ({problem})"
            ) from problem
    if point.kernel == "matmul":
        product, n = _example("matmul"), point.size("n")
        return [[product.launch(n, n, n, tiles)] for tiles in product.TILES]
    if point.kernel == "masked matmul":
        m, n, k, stages, warps = (int(size) for size in point.sizes["tiles"].split("x"))
        return [[kernels.masked_matmul_launch(point.size("n"), (m, n, k, stages, warps), point.size("group"))]]
    if point.kernel == "attention of 2022":
        return [
            [kernels.attention_of_2022_launch(*(point.size(name) for name in ("images", "heads", "tokens", "dim")))]
        ]
    if point.kernel not in ("attention forward", "masked attention forward", "attention backward"):
        raise InputError(f"no launch is described for the published kernel {point.kernel!r}")
    attention = _example("streaming_attention")
    sizes = [point.size(name) for name in ("images", "heads", "tokens", "dim", "causal")]
    sizes[-1] = bool(sizes[-1])
    if point.kernel == "attention backward":
        return [attention.backward_launches(*sizes)]
    given = point.sizes.get("blocks")
    blocks = [attention.Blocks(*map(int, given.split("x")))] if given else attention.FORWARD
    masked = point.kernel.startswith("masked")
    return [[attention.forward_launch(*sizes, choice, masked)] for choice in blocks]
