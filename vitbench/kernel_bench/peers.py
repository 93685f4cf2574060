"""Others' ways to compute attention with a bias, each given its inputs as it likes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitbench.errors import Unsupported
from vitbench.kernel_bench.problem import Call, Impl

Prepare = Callable[[list[Tensor]], list[Tensor]]

BACKENDS = {
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa-math": SDPBackend.MATH,
}
CUEQUIVARIANCE = {
    "cuequivariance_torch": "cuequivariance-torch",
    "cuequivariance_ops_torch": "cuequivariance-ops-torch-cu13",
}
FLASH_ATTENTION = {"flash_attn.cute": "flash-attn-4"}
FLASH_IS_FORWARD = "FlexAttention's FLASH backend has no gradient of a captured bias"
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


def optional_impls(prepare: Prepare, dense: Callable[..., list[Tensor]], device: str, train: bool) -> list[Impl]:
    """Peers in packages that users may lack, each with q, k, v and a bias [H, N, M] that `dense` makes of its inputs.

    cuEquivariance's triangle attention is bias attention where its rows of pairs are the images; it reads the bias in
    fp32. FlexAttention's FLASH backend is flash-attention 4 with the bias captured.
    """
    return [
        Impl("cuequivariance", lambda *x: _triangle_attention(*dense(*x)), prepare, _lacking(CUEQUIVARIANCE, device)),
        Impl(
            "flex-flash",
            lambda *x: _flash(*dense(*x)),
            prepare,
            FLASH_IS_FORWARD if train else _lacking(FLASH_ATTENTION, device),
        ),
    ]


def _lacking(modules: dict[str, str], device: str) -> str:
    """Why a peer cannot run here, by the modules that it needs and the packages that have them."""
    missing = [package for module, package in modules.items() if not _there(module)]
    if missing:
        return f"needs {' and '.join(missing)} (pip install)"
    return "needs a GPU" if device == "cpu" else ""


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False


def _triangle_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    from cuequivariance_torch import triangle_attention

    out: Tensor = triangle_attention(q[None], k[None], v[None], bias[None, None])
    return out[0]


@cache
def _compiled_flash() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def _flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[h, i, j]

    with refusing("BACKEND='FLASH'"):
        return _compiled_flash()(q, k, v, score_mod=add, kernel_options={"BACKEND": "FLASH"})
