"""Others' ways to compute attention with a bias, each given its inputs as it likes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitbench.errors import Unsupported
from vitbench.kernel_bench.problem import Call, Impl

BACKENDS = {
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
NAN_BUG = "cuDNN's backward with a mask gives NaN where N % 128 == 64 (pytorch#196678)"


def compiled(call: Call) -> Call:
    """`call` by torch.compile for the shapes it is given."""
    made: Callable[..., Tensor] = torch.compile(call, dynamic=False, fullgraph=True)
    return made


def through(backend: SDPBackend, call: Call) -> Call:
    """`call` with scaled_dot_product_attention pinned to one backend; Unsupported where that has no kernel."""

    def pinned(*args: Any) -> Tensor:
        with sdpa_kernel(backend), refusing("No available kernel", "No viable backend"):
            return call(*args)

    return pinned


@contextmanager
def refusing(*texts: str) -> Iterator[None]:
    """Names a RuntimeError that holds one of these texts what it is: a library's refusal of a case."""
    try:
        yield
    except RuntimeError as error:
        if any(text in str(error) for text in texts):
            raise Unsupported(str(error)) from error
        raise


def cast(dtype: torch.dtype) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda inputs: [t.to(dtype) for t in inputs]


def aligned(mask: Tensor) -> Tensor:
    """The same mask with rows a multiple of 16 elements apart: SDPA would else copy it in every call."""
    columns = mask.shape[-1]
    return F.pad(mask, (0, -columns % 16))[..., :columns]


def sdpa_impls(call: Call, prepare: Callable[[list[Tensor]], list[Tensor]], tokens: int, train: bool) -> list[Impl]:
    """One for each backend that takes a mask."""
    nan = NAN_BUG if train and tokens % 128 == 64 else ""
    return [
        Impl(name, through(backend, call), prepare, nan if name == "sdpa-cudnn" else "")
        for name, backend in BACKENDS.items()
    ]
