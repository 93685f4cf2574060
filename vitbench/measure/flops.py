"""Multiply-accumulates, activations and parameters of a model, counted twice without computing anything.

Convention: only convolutions and matrix products count, attention's two products included, fused or not;
bias, normalisation, activation, softmax, pooling and resizing do not. One multiply-accumulate is two FLOPs.

fvcore reads the operators that the model calls from a jit trace, torch's FlopCounterMode those that reach
the dispatcher, where scaled_dot_product_attention and einsum have been decomposed. Custom operators count by the
formula that they register with torch. Both run on a copy of
the model's structure on the meta device, because some fused CPU operators (attention,
TransformerEncoderLayer's fast path) are unknown to both counters and count 0 there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from fvcore.nn import jit_handles
from fvcore.nn.jit_analysis import JitModelAnalysis
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vitbench.catalog import Resolution
from vitbench.measure.registered_flops import registered_macs
from vitbench.measure.skeleton import replace_tensors


@dataclass(frozen=True)
class FlopCount:
    """Of one image: `gmacs` in 10^9 multiply-accumulates (1 MAC = 2 FLOPs), `macts` in 10^6 output elements
    of convolutions and matrix products, `params_m` in 10^6 parameters without buffers. `uncounted_ops`
    names operators whose multiply-accumulates, if they have any, are in none of these numbers.
    """

    gmacs: float
    macts: float
    params_m: float
    uncounted_ops: tuple[str, ...]


class CountsDisagree(RuntimeError):
    """fvcore and torch count different multiply-accumulates for the same model."""


def count(model: nn.Module, resolution: Resolution, in_chans: int = 3) -> FlopCount:
    """Counts one image of [in_chans, *resolution] in evaluation mode; `model` is read, never run or changed.

    A compiled model is counted as the eager model inside it.

    Raises: CountsDisagree when the two counters differ by a single multiply-accumulate in convolutions or
        in matrix products, so that an operator known to only one of them cannot pass in silence.
    """
    skeleton = replace_tensors(getattr(model, "_orig_mod", model), lambda tensor: tensor.detach().to("meta")).eval()
    skeleton.requires_grad_(False)  # torch's counter hooks gradients, which views made without them do not have
    with torch.no_grad(), torch.device("meta"):
        x = torch.empty(1, in_chans, *resolution)
        traced, unknown = _fvcore_count(skeleton, x)
        dispatched = _torch_count(skeleton, x)
    uncounted = tuple(sorted(op for op in unknown if not _has_no_products(op)))
    for kind in ("convolution", "product"):
        if traced[kind] != dispatched[kind]:
            raise CountsDisagree(
                f"multiply-accumulates in {kind}s: fvcore counts {traced[kind]:,}, torch's FlopCounterMode "
                f"{dispatched[kind]:,}; operators without a rule: {', '.join(uncounted) or 'none'}"
            )
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    macs = traced["convolution"] + traced["product"]
    return FlopCount(macs / 1e9, traced["activation"] / 1e6, parameters / 1e6, uncounted)


def _torch_count(model: nn.Module, x: Tensor) -> Counter[str]:
    with FlopCounterMode(display=False) as counter:
        model(x)
    counts: Counter[str] = Counter()
    for op, flops in counter.get_flop_counts().get("Global", {}).items():
        counts[_kind(str(op))] += flops // 2
    return counts


def _fvcore_count(model: nn.Module, x: Tensor) -> tuple[Counter[str], list[str]]:
    """(counts by kind, names of operators without a handle)."""
    analysis = JitModelAnalysis(model, (x,)).set_op_handle(**HANDLES, **_registered())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with _TraceableConvolutions():
        counts = Counter(analysis.by_operator())
    return counts, list(analysis.unsupported_ops())


def _registered() -> dict[str, Handle]:
    return {name: _counted(_kind(name), macs) for name, macs in registered_macs().items()}


def _kind(op: str) -> str:
    return "convolution" if "conv" in op else "product"


Values = Sequence[Any]  # torch._C.Value of an operator's arguments or results
Handle = Callable[[Values, Values], Any]


def _numel(value: Any) -> int:
    return prod(jit_handles.get_shape(value) or ())


def _counted(kind: str, macs: Handle) -> Handle:
    """A handle that gives an operator's multiply-accumulates under `kind`, and its output elements."""

    def handle(inputs: Values, outputs: Values) -> Counter[str]:
        found = macs(inputs, outputs)
        total = sum(found.values()) if isinstance(found, Counter) else found
        return Counter({kind: int(total), "activation": _numel(outputs[0])})

    return handle


def _padded_by_name(inputs: Values, outputs: Values) -> int:
    """A convolution whose padding is "same" or "valid"."""
    shapes = (jit_handles.get_shape(value) for value in (*inputs[:2], outputs[0]))
    return int(jit_handles.conv_flop_count(*shapes))


def _attention(inputs: Values, outputs: Values) -> Counter[str]:
    """Fused attention as its two products: q k^T [.., N, M] and its result times v [.., N, Dv]."""
    q, k, v = (jit_handles.get_shape(value) for value in inputs[:3])
    assert q is not None
    assert k is not None
    assert v is not None
    scores = prod(q[:-1]) * k[-2]
    return Counter({"product": scores * (q[-1] + v[-1]), "activation": scores + prod(q[:-1]) * v[-1]})


_FUSED_ATTENTION = (
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)

HANDLES: dict[str, Handle] = {
    "aten::_convolution": _counted("convolution", jit_handles.conv_flop_jit),
    "aten::_convolution_mode": _counted("convolution", _padded_by_name),
    "aten::linear": _counted("product", jit_handles.linear_flop_jit),
    "aten::matmul": _counted("product", jit_handles.matmul_flop_jit),
    "aten::mm": _counted("product", jit_handles.matmul_flop_jit),
    "aten::bmm": _counted("product", jit_handles.bmm_flop_jit),
    "aten::einsum": _counted("product", jit_handles.einsum_flop_jit),
    "aten::addmm": _counted("product", jit_handles.addmm_flop_jit),
    "aten::baddbmm": _counted("product", lambda inputs, outputs: jit_handles.bmm_flop_jit(inputs[1:3], outputs)),
    **{f"aten::{name}": _attention for name in _FUSED_ATTENTION},
}

# Reductions, normalisations, pooling, resizing, indexing, copies and random numbers: by convention no
# multiply-accumulates. Pointwise operators and views need no entry: torch's own tags tell.
_NO_PRODUCTS = frozenset(
    (
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "argmax",
        "avg_pool2d",
        "batch_norm",
        "bernoulli",
        "bernoulli_",
        "cumsum",
        "dropout",
        "embedding",
        "feature_dropout",
        "flip",
        "group_norm",
        "instance_norm",
        "layer_norm",
        "linalg_norm",
        "linalg_vector_norm",
        "log_softmax",
        "max_pool2d",
        "mean",
        "new_ones",
        "norm",
        "normal_",
        "one_hot",
        "ones_like",
        "pad",
        "pixel_shuffle",
        "pixel_unshuffle",
        "rand",
        "randn",
        "repeat",
        "repeat_interleave",
        "rms_norm",
        "scatter",
        "softmax",
        "std",
        "std_mean",
        "sum",
        "topk",
        "tril",
        "triu",
        "uniform_",
        "upsample_bicubic2d",
        "_upsample_bicubic2d_aa",
        "upsample_bilinear2d",
        "_upsample_bilinear2d_aa",
        "upsample_nearest2d",
        "var",
        "var_mean",
    )
)


def _has_no_products(op: str) -> bool:
    """Whether an operator of a trace ("aten::gelu") is free of multiply-accumulates by the convention."""
    space, _, name = op.partition("::")
    if space != "aten" or name in _NO_PRODUCTS:
        return space == "aten"
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return any(
        torch.Tag.pointwise in overload.tags
        or any(result.alias_info is not None and not result.alias_info.is_write for result in overload._schema.returns)
        for overload in overloads
    )


class _TraceableConvolutions(TorchFunctionMode):
    """Calls convolutions as aten::_convolution.

    A trace of a CPU or CUDA convolution records that operator; on the meta device the Python shape rule of
    its parent aten::convolution would run under the tracer, which fails.
    """

    _NAMES: ClassVar = {
        getattr(torch, f"conv{'_transpose' if transposed else ''}{dims}d"): (dims, transposed)
        for dims in (1, 2, 3)
        for transposed in (False, True)
    }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self._NAMES:
            return func(*args, **kwargs)
        dims, transposed = self._NAMES[func]
        names = ["input", "weight", "bias", "stride", "padding"]
        names += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
        given = dict(zip(names, args, strict=False)) | kwargs
        if isinstance(given.get("padding"), str):
            return func(*args, **kwargs)

        def sizes(name: str, default: int) -> list[int]:  # under a trace a size is a tensor without axes
            value = given.get(name, default)
            values = [int(size) for size in value] if isinstance(value, (tuple, list)) else [int(value)]
            return values * dims if len(values) == 1 else values

        return torch._convolution(
            given["input"],
            given["weight"],
            given.get("bias"),
            sizes("stride", 1),
            sizes("padding", 0),
            sizes("dilation", 1),
            transposed,
            sizes("output_padding", 0),
            given.get("groups", 1),
            *(False, False, False, False),  # cuDNN's benchmark, deterministic, enabled, allow_tf32
        )


__all__ = ["CountsDisagree", "FlopCount", "count"]
