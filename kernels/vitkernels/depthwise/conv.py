"""Depthwise convolution with its neighbours fused in: y = act(conv(x) + bias [+ x]) * scale + shift [+ x].

Fused: bias, the residual before ("pre", CMT's LPU and IRFFN) or after everything ("post", ConvMixer), the activation,
a per-channel affine map (an evaluated batch norm), and in training the per-channel sums that a batch norm after the
activation needs. One read of x and one write of y cannot be avoided: 2 * k^2 FLOPs per output against two elements of
traffic, so bytes bind at every kernel size once the taps run on the matrix unit (matrix.py: fp16 and bf16 at
stride 1) and multiply-adds do so at stride > 1 and in fp32 (direct.py).

Backward saves only x: one kernel computes conv(x) again, turns dy into the gradient du of the convolution's result and
sums the gradients of bias, scale and shift; one more takes du to dx (the forward kernel with reversed taps), one
correlates x with du for the weight. Sums over programs are written as partial rows and added in a fixed order, so
results repeat bit for bit. CPU tensors run plain PyTorch, except under TRITON_INTERPRET=1, where the kernels run.

Depthwise convolution: Sifre 2014; its use here: CMT (2107.06263), ConvMixer (2201.09792), EfficientNet (1905.11946).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkernels.depthwise.activations import ACTIVATIONS
from vitkernels.depthwise.operators import backward_op, forward_op
from vitkernels.runtime.autograd import distinct, needs_grad, once_differentiable
from vitkernels.runtime.device import autocast_dtype

RESIDUALS = ("none", "pre", "post")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | None = None,
    *,
    activation: str = "none",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: str | None = None,
) -> Tensor:
    """act(conv(x, weight) + bias [+ x]) * scale + shift [+ x], each part optional, in one kernel.

    Args:
        x: [B, C, H, W]; fp16, bf16 or fp32 (fp64 on the CPU); any strides, fastest as channels_last.
        weight: [C, 1, k, k] in x's dtype, k from 2 to 9.
        bias, scale, shift: [C], any floating dtype; used in fp32.
        stride: 1 or more; padding: 0 to k - 1 on every side, default k // 2; one integer or a pair of equal ones.
        activation: "none", "relu", "silu", "gelu" (exact) or "gelu_tanh".
        residual: None or "none", "pre" (x joins before the activation) or "post" (x joins last); these need
            stride 1 and padding (k - 1) / 2.

    Returns: [B, C, H', W'] in x's dtype, laid out as x is. Under autocast x and weight are cast to its dtype.
        An infinity or NaN in x reaches what the filter takes it to, and nothing else.

    Raises: ValueError on shape, dtype or device mismatch.
    """
    return _apply(x, weight, bias, stride, padding, activation, scale, shift, residual, stats=False)[0]


def depthwise_conv2d_stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | None = None,
    *,
    activation: str = "none",
    residual: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`depthwise_conv2d` for a batch norm in training: the result and, from the same pass, its sums per channel.

    Turn the sums into the norm's affine map with `batch_norm_affine` and fold that into whatever reads the result
    (the next 1 x 1 convolution). Gradients flow through the sums too. An infinity or NaN in x makes the channel's sums
    one, and so all that they normalise; in fp16 and bf16 it also reaches up to 15 columns beside the filter's.

    Args: as `depthwise_conv2d`; residual: None, "none" or "pre".

    Returns: y [B, C, H', W'], and fp32 sums [2, C]: of y and of y^2 over B, H' and W', before y is rounded.

    Raises: ValueError on shape, dtype or device mismatch.
    """
    if residual == "post":
        raise ValueError("depthwise_conv2d_stats: residual 'post' comes after the norm; expected None, 'none' or 'pre'")
    return _apply(x, weight, bias, stride, padding, activation, None, None, residual, stats=True)


def batch_norm_affine(
    sums: Tensor, count: int, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The affine map of a batch norm from the sums of `depthwise_conv2d_stats`.

    Args:
        sums: [2, C], sums of values and of squares; count: how many values were summed per channel.
        weight, bias: [C], the norm's parameters.

    Returns: scale, shift, mean and biased variance, each [C] in fp32 (or sums' fp64).

    Raises: ValueError when the shapes disagree.
    """
    if sums.shape != (2, weight.shape[0]) or weight.shape != bias.shape:
        raise ValueError(
            f"batch_norm_affine: sums {list(sums.shape)} should be [2, C] with weight {list(weight.shape)} and "
            f"bias {list(bias.shape)} of [C]"
        )
    mean = sums[0] / count
    variance = (sums[1] / count - mean * mean).clamp_min(0.0)
    scale = weight.to(mean.dtype) * (variance + eps).rsqrt()
    return scale, bias.to(mean.dtype) - mean * scale, mean, variance


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        stride: int,
        padding: int,
        activation: str,
        residual: str,
        stats: bool,
    ) -> tuple[Tensor, Tensor]:
        return forward_op(x, weight, bias, scale, shift, stride, padding, activation, residual, stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.config = inputs[5:]
        if not ctx.config[-1]:  # without statistics there are no sums
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable("depthwise_conv2d")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale, shift = ctx.saved_tensors
        stats = ctx.config[-1]
        needs = list(ctx.needs_input_grad[:5])
        found = backward_op(grads[0], grads[1] if stats else None, x, weight, bias, scale, shift, *ctx.config, needs)
        return *(g if need else None for g, need in zip(found, needs, strict=True)), None, None, None, None, None


def _apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int | None,
    activation: str,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: str | None,
    stats: bool,
) -> tuple[Tensor, Tensor]:
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, weight = x.to(dtype), weight.to(dtype)
    residual = residual or "none"
    _check_shapes(x, weight)
    stride = _both("stride", stride)
    padding = weight.shape[-1] // 2 if padding is None else _both("padding", padding)
    _validate(x, weight, {"bias": bias, "scale": scale, "shift": shift}, stride, padding, activation, residual)
    tensors = (x, weight, bias, scale, shift)
    config = (stride, padding, activation, residual, stats)
    if needs_grad(*tensors):
        y, sums = _DepthwiseConv2d.apply(*distinct(*tensors), *config)
        return y, sums
    return forward_op(*tensors, *config)


def _require(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"depthwise_conv2d: {what}")


def _check_shapes(x: Tensor, weight: Tensor) -> None:
    _require(x.dim() == 4, f"x {list(x.shape)} should be [B, C, H, W], with weight {list(weight.shape)}")
    k = weight.shape[-1] if weight.dim() else 0
    _require(
        tuple(weight.shape) == (x.shape[1], 1, k, k),
        f"weight {list(weight.shape)} should be [C, 1, k, k] with the C of x {list(x.shape)}",
    )
    _require(2 <= k <= 9, f"kernel {k} x {k} of weight {list(weight.shape)} should be 2 x 2 to 9 x 9")


def _both(name: str, value: Any) -> int:
    """A stride or padding given as one integer or as a pair of equal ones."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    whole = all(isinstance(side, int | torch.SymInt) for side in pair)
    _require(len(pair) == 2 and whole and pair[0] == pair[1], f"{name} {value} should be one integer for both sides")
    return int(pair[0])


def _validate(
    x: Tensor,
    weight: Tensor,
    vectors: dict[str, Tensor | None],
    stride: int,
    padding: int,
    activation: str,
    residual: str,
) -> None:
    k = weight.shape[-1]
    for name, t in vectors.items():
        if t is not None:
            _require(
                tuple(t.shape) == (x.shape[1],), f"{name} {list(t.shape)} should be [C] with the C of x {list(x.shape)}"
            )
            _require(t.is_floating_point(), f"{name} is {t.dtype}, x is {x.dtype}; {name} should be floating point")
            _require(t.device == x.device, f"{name} is on {t.device}, x is on {x.device}")
    _require(x.dtype in _DTYPES, f"x is {x.dtype}, weight {weight.dtype}; x should be fp16, bf16 or fp32")
    _require(weight.dtype == x.dtype, f"weight is {weight.dtype}, x is {x.dtype}; they should be equal")
    _require(weight.device == x.device, f"weight is on {weight.device}, x is on {x.device}")
    _require(x.dtype != torch.float64 or x.device.type == "cpu", f"x is {x.dtype} on {x.device}; fp64 is for the CPU")
    _require(stride >= 1, f"stride {stride} should be 1 or more")
    _require(0 <= padding < k, f"padding {padding} should be from 0 to k - 1 = {k - 1}")
    _require(
        min(x.shape[2:]) + 2 * padding >= k, f"x {list(x.shape)} padded by {padding} is smaller than kernel {k} x {k}"
    )
    _require(activation in ACTIVATIONS, f"activation {activation!r} should be one of {', '.join(ACTIVATIONS)}")
    _require(residual in RESIDUALS, f"residual {residual!r} should be one of {', '.join(RESIDUALS)}")
    _require(
        residual == "none" or (stride == 1 and 2 * padding == k - 1),
        f"residual {residual!r} needs stride 1 and padding (k - 1) / 2, not stride {stride}, padding {padding}, k {k}",
    )


def depthwise_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | None = None,
    *,
    activation: str = "none",
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: str | None = None,
) -> Tensor:
    """`depthwise_conv2d` in plain PyTorch, computed in fp32 (fp64 for fp64 input); same arguments and result."""
    padding = weight.shape[-1] // 2 if padding is None else padding
    acc = torch.promote_types(x.dtype, torch.float32)
    wide = x.to(acc)
    u = F.conv2d(wide, weight.to(acc), None if bias is None else bias.to(acc), stride, padding, groups=x.shape[1])
    if residual == "pre":
        u = u + wide
    y = _ACTIVATE[activation](u)
    if scale is not None:
        y = y * scale.to(acc)[:, None, None]
    if shift is not None:
        y = y + shift.to(acc)[:, None, None]
    if residual == "post":
        y = y + wide
    return y.to(x.dtype)


_ACTIVATE = {
    "none": lambda u: u,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda u: F.gelu(u, approximate="tanh"),
}


def depthwise_conv2d_work(
    x_shape: tuple[int, int, int, int],
    k: int,
    stride: int = 1,
    padding: int | None = None,
    *,
    itemsize: int = 2,
    backward: bool = False,
) -> tuple[int, int]:
    """FLOPs (2 per multiply-add, convolution only) and bytes that cannot be avoided.

    Forward reads x and writes y; backward (with an activation) reads x and dy and writes dx, counts the products of dx
    and of the weight's gradient, and leaves out the repeated convolution. Weights and vectors are small and left out.
    """
    batch, channels, height, width = x_shape
    padding = k // 2 if padding is None else padding
    out = batch * channels * ((height + 2 * padding - k) // stride + 1) * ((width + 2 * padding - k) // stride + 1)
    inputs = batch * channels * height * width
    if backward:
        return 4 * k * k * out, itemsize * (2 * inputs + out)
    return 2 * k * k * out, itemsize * (inputs + out)


@dataclass(frozen=True)
class DepthwiseCase:
    """One shape of a real model; `affine` stands for an evaluated batch norm after the activation."""

    name: str
    C: int
    H: int
    W: int
    k: int
    stride: int = 1
    padding: int = 0
    activation: str = "none"
    bias: bool = True
    affine: bool = False
    residual: str = "none"
    B: int = 64


def _same(name: str, channels: int, size: int, k: int, **rest: Any) -> DepthwiseCase:
    return DepthwiseCase(name, channels, size, size, k, padding=k // 2, **rest)


DEPTHWISE_CONV2D_CASES: tuple[DepthwiseCase, ...] = (
    *(_same(f"cmt_s-{s}-lpu", 64 << i, 56 >> i, 3, residual="pre") for i, s in enumerate("abcd")),
    *(
        _same(f"cmt_s-{s}-irffn", 256 << i, 56 >> i, 3, activation="gelu", affine=True, residual="pre")
        for i, s in enumerate("abcd")
    ),
    *(
        DepthwiseCase(f"cmt_s-{s}-reduce", 64 << i, 56 >> i, 56 >> i, 8 >> i, stride=8 >> i, affine=True)
        for i, s in enumerate("abc")
    ),
    _same("cmt_ti-a-irffn", 165, 40, 3, activation="gelu", affine=True, residual="pre"),
    _same("coatnet_0-s1", 384, 56, 3, activation="gelu", bias=False, affine=True),
    _same("convmixer_768_32", 768, 32, 7, activation="relu", affine=True, residual="post"),
    _same("convmixer_1024_20", 1024, 16, 9, activation="gelu", affine=True, residual="post"),
    _same("convmixer_1536_20", 1536, 32, 9, activation="gelu", affine=True, residual="post"),
    _same("efficientnet_b0-s1", 32, 112, 3, activation="silu", bias=False, affine=True),
    _same("efficientnet_b0-s2", 96, 112, 3, stride=2, activation="silu", bias=False, affine=True),
    _same("efficientnet_b0-s3", 144, 56, 5, stride=2, activation="silu", bias=False, affine=True),
    _same("efficientnet_b0-s5", 480, 14, 5, activation="silu", bias=False, affine=True),
    _same("convnext_t-s1", 96, 56, 7),
    _same("convnext_t-s4", 768, 7, 7),
)
