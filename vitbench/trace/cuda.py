"""What CUDA does otherwise than the CPU, on fake CPU tensors: attention, dropout, softmax, operands of products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitbench.trace.attention import attention, workspace
from vitbench.trace.autocast import registered

aten = torch.ops.aten

CONVOLUTION = aten.convolution.default
#: Matrix products, by the numbers of their operands.
PRODUCTS = {
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """One kernel with a mask of a byte an element, where there is something to drop."""
    if not train or p == 0 or p == 1 or not x.numel():
        return x if not train or p == 0 else x * 0
    return aten.native_dropout.default(x, p, train)[0]


def _softmax(op: Any, x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """fp16 becomes fp32 inside the kernel, other dtypes by a copy before it."""
    if x.dtype is torch.float16 and dtype is torch.float32:
        return op(x, dim, True)
    return op(x if dtype is None else x.to(dtype), dim, False)


class _KeepingSoftmax(torch.autograd.Function):
    """Keeps input and output for its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        y = torch.empty(x.shape, dtype=dtype)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.empty_like(ctx.saved_tensors[0]), None


def _keeping_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    return _KeepingSoftmax.apply(x, dtype or x.dtype)


def instead(cudnn: bool = False, softmax_keeps_input: bool = False) -> dict[Any, Callable[..., Any]]:
    """What runs instead of an operator.

    Args:
        cudnn: whether attention prefers cuDNN's kernel, as on sm_90 and sm_100.
        softmax_keeps_input: as torch before 1.11 did, beside its output.
    """
    softmax = _keeping_softmax if softmax_keeps_input else partial(_softmax, aten._softmax.default)
    return {
        aten.scaled_dot_product_attention.default: partial(attention, cudnn=cudnn),
        aten.dropout.default: _dropout,
        aten.softmax.int: softmax,
        aten.log_softmax.int: partial(_softmax, aten._log_softmax.default),
    }


def inside(op: Any, args: tuple[Any, ...], out: Any) -> int:
    """Bytes that a CUDA kernel allocates and frees inside itself, where torch's code says how many.

    cuBLAS takes matrices with one dense dimension, others are copied for it; attention's backward adds up in fp32.
    """
    rule = _INSIDE.get(id(op))
    return 0 if rule is None else rule(args)


def _copied(matrix: Tensor) -> int:
    """The bytes of a copy that cuBLAS needs of a matrix [..., rows, columns]; 0 where it reads it as it is."""
    *_, rows, columns = matrix.shape
    *_, row, column = matrix.stride()
    dense = (column == 1 and row >= max(1, columns)) or (row == 1 and column >= max(1, rows))
    return 0 if dense else matrix.numel() * matrix.element_size()


#: By id, as an operator's hash is slow.
_INSIDE: dict[int, Callable[[tuple[Any, ...]], int]] = {
    id(op): lambda args, _of=numbers: sum(_copied(args[number]) for number in _of) for op, numbers in PRODUCTS.items()
} | {
    id(aten._scaled_dot_product_flash_attention_backward.default): lambda args: workspace(args[1], flash=True),
    id(aten._scaled_dot_product_efficient_attention_backward.default): lambda args: workspace(args[1], flash=False),
}


@contextmanager
def rules(replaced: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """The functions of `instead` run under autograd too, where a tracer sees only what an operator is made of."""
    named = {op._schema.name.removeprefix("aten::") + _suffix(op): run for op, run in replaced.items()}
    with registered(named, "AutogradCPU"):
        yield


def _suffix(op: Any) -> str:
    return "" if op._overloadname == "default" else f".{op._overloadname}"


__all__ = ["CONVOLUTION", "PRODUCTS", "inside", "instead", "rules"]
