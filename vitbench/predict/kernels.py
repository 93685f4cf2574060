"""Which CUDA kernel eager PyTorch starts for an operator, and how much it reads, writes and multiplies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from vitbench.predict.operators import BATCH, Call, Operand
from vitbench.predict.table import Kernel

_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
_STRIDED = ("constant_pad_nd", "reflection_pad2d", "replication_pad2d", "repeat", "cat", "stack")
_NORMS = ("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm")
_REDUCTIONS = (
    "mean", "sum", "var", "var_mean", "amax", "amin", "max", "min", "std", "std_mean", "linalg_vector_norm", "norm",
    "argmax", "cumsum", "topk", "sort", "prod", "logsumexp",
)  # fmt: skip
_GATHERS = (
    "index", "gather", "roll", "im2col", "col2im", "index_select", "index_put_", "scatter", "embedding", "flip",
    "grid_sampler_2d", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "masked_fill",
    "unfold", "index_add_", "take",
)  # fmt: skip


def kernels(calls: Mapping[Call, int]) -> Counter[Kernel]:
    """The kernels of a model's operators, with how often each starts."""
    found: Counter[Kernel] = Counter()
    for call, count in calls.items():
        if any(out.elements for out in call.outputs) or not call.outputs:
            found[kernel(call)] += count
    return found


def kernel(call: Call) -> Kernel:
    """The kernel of one operator. What has none of its own in KINDS is "other"."""
    if call.op == "convolution":
        return _convolution(call)
    if call.op in _PRODUCTS:
        return _product(call)
    moved, fixed = _bytes(call)
    if "attention" in call.op:
        return _attention(call, moved, fixed)
    kind = _memory_kind(call)
    first = call.inputs[0] if call.inputs else call.outputs[0]
    # A row that does not lie dense is made dense before it is normalised.
    copied = kind == "normalisation" and not _is_dense(first)
    beside = 2 * first.bytes / BATCH if copied and first.grows else 0.0
    width = call.outputs[0].shape[-1] if kind == "softmax" else 1
    if kind == "pooling":
        window = next((n for n in call.numbers if isinstance(n, tuple)), (1,))
        return Kernel(kind, moved, fixed, macs=_per_image(call.outputs[0]) * _window(window))
    if kind == "resize":
        out = call.outputs[0]
        return Kernel(kind, moved, fixed, macs=_per_image(out), depth=prod(out.shape[2:]))
    return Kernel(kind, moved, fixed, width=width, beside=beside)


def _bytes(call: Call) -> tuple[float, float]:
    """Those that grow with the batch, for an image, and those that do not."""
    operands = (*call.inputs, *call.outputs)
    return (
        sum(o.bytes for o in operands if o.grows) / BATCH,
        float(sum(o.bytes for o in operands if not o.grows)),
    )


def _per_image(operand: Operand) -> float:
    return prod(operand.shape) / BATCH


def _window(window: tuple[int, ...]) -> int:
    return prod(window) if len(window) > 1 else window[0] ** 2


def _convolution(call: Call) -> Kernel:
    x, weight, *bias = call.inputs
    out = call.outputs[0]
    _, _, _, transposed, _, groups = call.numbers
    macs = _per_image(x if transposed else out) * prod(weight.shape[1:])
    moved = (x.bytes + out.bytes) / BATCH
    window = prod(weight.shape[2:])
    inputs, outputs = x.shape[1] // groups, out.shape[1] // groups
    last = is_channels_last(x)
    beside = 2.0 * out.bytes / BATCH if bias else 0.0
    fixed = float(weight.bytes)
    if groups > 1 and inputs == 1:
        kind = "depthwise channels-last" if last else "depthwise convolution"
        return Kernel(kind, moved, fixed, macs, window, outputs, beside=beside)
    # The matrix kernels read channels-last; from another layout the tensors are copied, one image's after the other.
    copied = 0.0 if last else moved
    kind = "grouped convolution" if groups > 1 else "first convolution" if inputs <= 4 else "convolution"
    aligned = inputs % 8 == 0 and outputs % 8 == 0
    return Kernel(kind, moved, fixed, macs, inputs * window, outputs, aligned, beside + copied)


def _product(call: Call) -> Kernel:
    a, b = call.inputs[_PRODUCTS[call.op] :][:2]
    rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    batch = a.shape[0] if len(a.shape) == 3 else 1
    macs = batch * rows * depth * columns / (BATCH if a.grows or b.grows else 1)
    moved, fixed = _bytes(call)
    aligned = depth % 8 == 0 and columns % 8 == 0
    if a.itemsize == 4:
        return Kernel("fp32 product", moved, fixed, macs, depth, columns, aligned)
    if batch > 1:
        return Kernel("batched product", moved, fixed, macs, depth, min(rows, columns), aligned)
    return Kernel("product", moved, fixed, macs, depth, columns if a.grows else rows, aligned)


def _attention(call: Call, moved: float, fixed: float) -> Kernel:
    """q is [B, H, N, D], k and v are [B, H, M, D]; the width is M."""
    q, k, v, *bias = call.inputs
    macs = _per_image(q) / q.shape[-1] * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    kind = "attention with bias" if bias else "attention"
    if bias and not bias[0].grows:
        fixed = float(bias[0].bytes)
    return Kernel(kind, moved, fixed, macs, q.shape[-1], k.shape[-2])


def _memory_kind(call: Call) -> str:
    op = call.op
    if op in _NORMS:
        return "normalisation"
    if "softmax" in op:
        return "softmax"
    if "batch_norm" in op:
        return "batch norm"
    if op in _REDUCTIONS:
        return "reduction"
    if "pool" in op:
        return "pooling"
    if "upsample" in op:
        return "gather" if is_channels_last(call.inputs[0]) or "nearest" in op else "resize"
    if op in _GATHERS:
        return "gather"
    if op in _STRIDED:
        return "strided copy"
    if op in ("_to_copy", "clone", "copy_", "contiguous"):
        source = call.inputs[-1] if op == "copy_" else call.inputs[0]
        return "copy" if _same_order(source, call.outputs[0]) else "strided copy"
    if call.pointwise or op.endswith("_") or op in ("hardswish", "hardsigmoid", "hardtanh"):
        return _pointwise(call)
    return "other"


def _pointwise(call: Call) -> str:
    out = call.outputs[0]
    sources = [source for source in call.inputs if source.shape]
    if any(source.shape == out.shape and not _same_order(source, out) for source in sources):
        return "strided copy"
    if any(source.elements != out.elements or source.shape != out.shape for source in sources):
        return "broadcast"
    return "elementwise"


def is_channels_last(x: Operand) -> bool:
    """Whether a map [B, C, h, w] has its channels side by side."""
    return len(x.shape) == 4 and x.stride[1] == 1 and x.shape[1] > 1 and x.stride[3] >= x.shape[1]


def _is_dense(x: Operand) -> bool:
    expected = 1
    for size, step in zip(reversed(x.shape), reversed(x.stride), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= size
    return True


def _same_order(source: Operand, out: Operand) -> bool:
    """Whether both lie in memory in the same order of axes, so that neighbours are read and written together."""
    axes = [axis for axis, size in enumerate(out.shape) if size > 1]
    return source.shape == out.shape and _order(source, axes) == _order(out, axes)


def _order(x: Operand, axes: list[int]) -> list[int]:
    return sorted(axes, key=lambda axis: -x.stride[axis])


__all__ = ["is_channels_last", "kernel", "kernels"]
