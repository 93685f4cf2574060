"""CUDA's autocast on CPU tensors: which operators run in fp32, which in the lower precision, which in the widest.

The CPU's autocast knows other lists: it leaves normalisations, softmax and sums in the lower precision, while CUDA
makes fp32 copies for them. What both compute in the lower precision the CPU's own autocast casts, with its cache of
weights. The lists are those of torch's ATen/autocast_mode.h; a test holds them against that of the installed torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

LOWER_NOT_ON_CPU = (
    "addmv", "addr", "mv", "einsum", "chain_matmul", "linalg_multi_dot", "_thnn_fused_lstm_cell",
    "_thnn_fused_gru_cell", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
)  # fmt: skip
FP32 = (
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm",
    "rms_norm", "group_norm", "frobenius_norm.dim", "nuclear_norm", "nuclear_norm.dim", "cosine_similarity",
    "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d", "hinge_embedding_loss", "kl_div", "l1_loss",
    "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss",
    "triplet_margin_loss", "multi_margin_loss", "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm",
    "logsumexp", "upsample_nearest1d", "_upsample_nearest_exact1d", "upsample_nearest2d", "_upsample_nearest_exact2d",
    "upsample_nearest3d", "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
)  # fmt: skip
#: These are given fp32 as the dtype of their result, unless the caller gave one.
FP32_RESULT = (
    "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm",
    "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList",
)  # fmt: skip
#: These are another overload with fp32 as a last argument.
FP32_OVERLOAD = {"norm.Scalar": "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype"}
WIDEST = (
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
    "scatter_add",
)  # fmt: skip

_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


def overload(name: str) -> Any:
    """`torch.ops.aten.softmax.int` of "softmax.int", the default overload of a bare name; None where there is none."""
    base, _, which = name.partition(".")
    return getattr(getattr(aten, base, None), which or "default", None)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        narrow = value.is_floating_point() and value.dtype is not torch.float64
        return value.to(dtype) if narrow and value.dtype is not dtype else value
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _casting(op: Any, dtype_of: Callable[[tuple[Any, ...]], torch.dtype]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            dtype = dtype_of((*args, *kwargs.values()))
            args = tuple(_cast(arg, dtype) for arg in args)
            return op(*args, **{name: _cast(value, dtype) for name, value in kwargs.items()})

    return run


def _resulting(op: Any) -> Callable[..., Any]:
    names = [argument.name for argument in op._schema.arguments]

    def run(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | kwargs
        if given.get("dtype") is None and _is_narrow(given["self"]):
            given["dtype"] = torch.float32
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            return op(**given)

    return run


def _is_narrow(x: Tensor) -> bool:
    return x.is_floating_point() and x.dtype is not torch.float64


def _widest(values: tuple[Any, ...]) -> torch.dtype:
    flat = [item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,))]
    wide = any(isinstance(item, Tensor) and item.dtype is torch.float32 for item in flat)
    return torch.float32 if wide else torch.get_autocast_dtype("cpu")


def kernels(also_fp32: tuple[str, ...] = ()) -> dict[str, Callable[..., Any]]:
    """What autocast does before each operator of the lists, for the dispatch key of the CPU's autocast."""
    found: dict[str, Callable[..., Any]] = {}
    for names, dtype_of in (
        (LOWER_NOT_ON_CPU, lambda values: torch.get_autocast_dtype("cpu")),
        (FP32 + also_fp32, lambda values: torch.float32),
        (WIDEST, _widest),
    ):
        found |= {name: _casting(op, dtype_of) for name in names if (op := overload(name)) is not None}
    found |= {name: _resulting(op) for name in FP32_RESULT if (op := overload(name)) is not None}
    for name, other in FP32_OVERLOAD.items():
        op, plain = overload(other), overload(name)

        def run(x: Tensor, p: Any, *args: Any, _op: Any = op, _plain: Any = plain) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(_KEY):
                return _op(x, p, *args, dtype=torch.float32) if _is_narrow(x) else _plain(x, p, *args)

        found[name] = run
    return found


@contextmanager
def registered(implementations: dict[str, Callable[..., Any]], key: str) -> Iterator[None]:
    """The functions are the operators' implementations at a dispatch key of this process, until the end."""
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that another implementation is replaced is what is wanted
            for name, run in implementations.items():
                library.impl(name, run, key)
        yield
    finally:
        library._destroy()


@contextmanager
def policy(dtype: torch.dtype | None, also_fp32: tuple[str, ...] = ()) -> Iterator[None]:
    """Where autocast to `dtype` is on, it does as CUDA's does; for None it is never on."""
    if dtype is None:
        yield
        return
    with registered(kernels(also_fp32), "AutocastCPU"):
        yield


@contextmanager
def enabled(dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to `dtype` for CPU tensors, of which models see CUDA's as enabled; nothing for None."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with torch.autocast("cpu", dtype):
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])


__all__ = [
    "FP32",
    "FP32_OVERLOAD",
    "FP32_RESULT",
    "LOWER_NOT_ON_CPU",
    "WIDEST",
    "enabled",
    "kernels",
    "overload",
    "policy",
    "registered",
]
