"""Multiply-accumulates of one call of an operator of torch, from the shapes of its arguments and its result.

These are the operators that a model calls (linear, einsum, lstm), not those that they are made of, and every rule
is exact: broadcast axes, groups, transposed weights and inputs without a batch included.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from vitbench.measure.einsum_macs import einsum_macs

Arguments = dict[str, Any]
#: From the arguments by name and the (first) result to the multiply-accumulates of the call.
Rule = Callable[[Arguments, Tensor], int]


def _rows(x: Tensor) -> int:
    return prod(x.shape[:-1])


def _product(left: str, right: str) -> Rule:
    """[.., M, K] times [.., K, N] or [K]; the result may have been added to something that is larger."""

    def macs(given: Arguments, out: Tensor) -> int:
        a, b = given[left], given[right]
        batch = prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
        rows = a.shape[-2] if a.ndim > 1 else 1
        return batch * rows * a.shape[-1] * (b.shape[-1] if b.ndim > 1 else 1)

    return macs


def _linear(given: Arguments, out: Tensor) -> int:
    return given["input"].numel() * prod(given["weight"].shape[:-1])


def _convolution(given: Arguments, out: Tensor) -> int:
    """Every output sums over its group's channels and the window; transposed, every input is spread over them."""
    transposed = given.get("transposed", False)
    return (given["input"] if transposed else out).numel() * prod(given["weight"].shape[1:])


def _transposed_convolution(given: Arguments, out: Tensor) -> int:
    return _convolution({**given, "transposed": True}, out)


def _convolution_tbc(given: Arguments, out: Tensor) -> int:
    """weight: [width, channels, outputs]."""
    return out.numel() * prod(given["weight"].shape[:2])


def _attention(given: Arguments, out: Tensor) -> int:
    """Its two products: q k^T [.., N, M] and the weights times v [.., M, Dv]."""
    q, k, v = (given[name] for name in ("query", "key", "value"))
    return _rows(q) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _recurrent(given: Arguments, out: Tensor) -> int:
    """Every matrix of every layer and direction (a projection too), once for every step of every sequence."""
    x = given.get("input", given.get("data"))
    assert isinstance(x, Tensor)
    return _rows(x) * sum(weight.numel() for weight in given["params"] if weight.ndim == 2)


def _recurrent_cell(given: Arguments, out: Tensor) -> int:
    return _rows(given["input"]) * (given["w_ih"].numel() + given["w_hh"].numel())


def _bilinear(given: Arguments, out: Tensor) -> int:
    """Every output of every row sums over a table of both inputs' channels."""
    return _rows(given["input1"]) * given["weight"].numel()


def _distance(points: str) -> Rule:
    """Euclidean distances square and add every coordinate; those of other norms have no products."""

    def macs(given: Arguments, out: Tensor) -> int:
        return out.numel() * given[points].shape[-1] if given.get("p", 2) == 2 else 0

    return macs


def _einsum(given: Arguments, out: Tensor) -> int:
    shapes = [tuple(tensor.shape) for tensor in given["tensors"]]
    return einsum_macs(given["equation"], shapes, given.get("path"))


_BY_NAME: dict[str, Rule] = {
    "linear": _linear,
    **dict.fromkeys(("matmul",), _product("self", "other")),
    **dict.fromkeys(("mm", "bmm"), _product("self", "mat2")),
    "mv": _product("self", "vec"),
    "addmm": _product("mat1", "mat2"),
    "addmv": _product("mat", "vec"),
    **dict.fromkeys(("baddbmm", "addbmm"), _product("batch1", "batch2")),
    **dict.fromkeys(("dot", "vdot"), lambda given, out: given["self"].numel()),
    "einsum": _einsum,
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "_convolution_mode"),
        _convolution,
    ),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "conv_tbc": _convolution_tbc,
    **dict.fromkeys(
        (
            "scaled_dot_product_attention",
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        _attention,
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _recurrent_cell),
    "bilinear": _bilinear,
    **dict.fromkeys(("cdist", "_cdist_forward", "_euclidean_dist"), _distance("x1")),
    **dict.fromkeys(("pdist", "_pdist_forward"), _distance("self")),
}
#: By torch's operator; `bmm` calls its second argument mat2, as `mm` does.
RULES: dict[Any, Rule] = {
    getattr(torch.ops.aten, name): rule for name, rule in _BY_NAME.items() if hasattr(torch.ops.aten, name)
}


def activations(op: Any, given: Arguments, out: Tensor) -> int:
    """Output elements of a call; attention's scores are an output of its first product."""
    if RULES.get(op) is _attention:
        return _rows(given["query"]) * given["key"].shape[-2] + out.numel()
    return out.numel()


#: Words of names of operators that multiply.
_MULTIPLYING = frozenset(
    (
        *("mm", "bmm", "addmm", "baddbmm", "addbmm", "gemm", "mv", "addmv", "dot", "vdot", "matmul", "linear"),
        *("convolution", "conv", "attention", "mha", "encoder", "rnn", "lstm", "gru", "trilinear", "cdist", "pdist"),
        *("euclidean", "fft", "linalg", "solve", "inverse", "cholesky", "lu", "qr", "geqrf", "ormqr", "svd", "eigh"),
    )
)
_WITHOUT_PRODUCTS = frozenset(("linalg_vector_norm", "linalg_cross"))
#: Of torch itself; an operator of anybody else's may multiply, for all that is known.
_OWN = ("aten", "prims", "prim", "profiler")


def multiplies(op: Any) -> bool:
    """Whether an operator may have multiply-accumulates, judged by its name (`aten::_fft_r2c`) and torch's tags."""
    if torch.Tag.pointwise in op.tags:
        return False
    if op.namespace not in _OWN:
        return True
    name = op.overloadpacket.__name__
    return name not in _WITHOUT_PRODUCTS and not _MULTIPLYING.isdisjoint(name.split("_"))


__all__ = ["RULES", "Arguments", "Rule", "activations", "multiplies"]
