"""The two opaque torch operators behind `depthwise_conv`: forward and backward, with shapes, strides and FLOPs."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkernels.depthwise.plan import Flags, Geometry, Plan, plan_conv, plan_dw, plan_dx
from vitkernels.runtime.device import on_device_of

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_LIBRARY = torch.library.Library("vitkernels", "FRAGMENT")
_LIBRARY.define(
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, SymInt stride, "
    "SymInt padding, str activation, str residual, bool stats) -> (Tensor, Tensor)"
)
# Its flags are integers: a trace cannot hold a list of bools, and fvcore counts traces.
_LIBRARY.define(
    "depthwise_conv2d_backward(Tensor dy, Tensor? dsums, Tensor x, Tensor weight, Tensor? bias, Tensor? scale, "
    "Tensor? shift, SymInt stride, SymInt padding, str activation, str residual, bool stats, int[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
forward_op = torch.ops.vitkernels.depthwise_conv2d.default
backward_op = torch.ops.vitkernels.depthwise_conv2d_backward.default


def is_channels_last(x: Tensor) -> bool:
    """Whether a result for x is laid out with channels innermost."""
    return not x.is_contiguous() and x.stride(1) <= x.stride(3)


def _like(x: Tensor, height: int, width: int) -> Tensor:
    """An empty [B, C, height, width] in x's dtype and kind of layout."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty((x.shape[0], x.shape[1], height, width), dtype=x.dtype, device=x.device, memory_format=layout)


def _geometry(x: Tensor, weight: Tensor, stride: int, padding: int) -> Geometry:
    batch, channels, height, width = x.shape
    return Geometry(batch, channels, height, width, weight.shape[-1], stride, padding)


def on_matrix_unit(dtype: torch.dtype, stride: int) -> bool:
    """Whether the matrix-unit kernels serve this convolution; interpreted bf16 products would be wrong."""
    return stride == 1 and (dtype == torch.float16 or (dtype == torch.bfloat16 and not _INTERPRETED))


def _precise(dtype: torch.dtype) -> bool:
    """Whether results show more than the fast activations compute; the interpreter also takes fp64."""
    return dtype not in (torch.float16, torch.bfloat16)


def _strides(letter: str, t: Tensor) -> dict[str, int]:
    return {f"stride_{letter}{axis}": s for axis, s in zip("bchw", t.stride(), strict=True)}


def _direct_taps(weight: Tensor, channels_last: bool) -> dict[str, Any]:
    """The weight for the direct kernels; a small copy puts channels innermost, so that a thread reads its taps wide."""
    k = weight.shape[-1]
    taps = weight.reshape(-1, k * k)
    taps = taps.t().contiguous().t() if channels_last else taps.contiguous()
    return {"w_ptr": taps, "stride_wc": taps.stride(0), "stride_wt": taps.stride(1)}


def _launch(plan: Plan, **tensors: Any) -> None:
    with on_device_of(next(tensor for tensor in tensors.values() if isinstance(tensor, Tensor))):
        plan.kernel[plan.grid](
            **tensors, **plan.args, num_warps=plan.num_warps, num_stages=plan.num_stages, maxnreg=plan.maxnreg
        )


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    res: Tensor | None,
    dstats: Tensor | None,
    g: Geometry,
    flags: Flags,
    out: Tensor,
) -> Tensor | None:
    """Launch the forward kernel (or its gradient form) into `out`; returns the summed partial rows, if any."""
    matrix, layout = on_matrix_unit(x.dtype, g.stride), is_channels_last(x)
    plan = plan_conv(g, flags, matrix=matrix, precise=_precise(x.dtype), channels_last=layout)
    taps = {"w_ptr": weight.contiguous()} if matrix else _direct_taps(weight, layout)
    rows = 3 if flags.grad else 2 if flags.stats else 0
    part = torch.empty((plan.slices, rows, g.C), dtype=torch.float32, device=x.device) if rows else None
    res_like = out if res is None else res
    _launch(
        plan,
        y_ptr=out,
        part_ptr=part,
        x_ptr=x,
        **taps,
        bias_ptr=bias,
        scale_ptr=scale,
        shift_ptr=shift,
        res_ptr=res,
        dstats_ptr=dstats,
        **_strides("x", x),
        **_strides("y", out),
        **_strides("r", res_like),
    )
    return None if part is None else part.sum(0)


def _forward_kernels(
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
    if not x.numel():  # nothing to launch for an empty batch
        return _forward_plain(x, weight, bias, scale, shift, stride, padding, activation, residual, stats)
    g = _geometry(x, weight, stride, padding)
    flags = Flags(
        activation=activation,
        bias=bias is not None,
        scale=scale is not None,
        shift=shift is not None,
        pre=residual == "pre",
        post=residual == "post",
        stats=stats,
    )
    y = _like(x, g.OH, g.OW)
    res = x if residual == "post" else None
    sums = _convolve(x, weight, _dense(bias), _dense(scale), _dense(shift), res, None, g, flags, y)
    return y, x.new_empty((0,), dtype=torch.float32) if sums is None else sums


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _backward_kernels(
    dy: Tensor,
    dsums: Tensor | None,
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
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not x.numel():
        rest = (weight, bias, scale, shift, stride, padding, activation, residual, stats, needs)
        return _backward_plain(dy, dsums, x, *rest)
    g = _geometry(x, weight, stride, padding)
    need_x, need_w, need_bias, need_scale, need_shift = needs
    layout, matrix = is_channels_last(x), on_matrix_unit(x.dtype, stride)
    du, dbias, dscale, dshift = dy, None, None, None
    if activation != "none" or scale is not None or stats:
        du = _like(x, g.OH, g.OW)
        flags = Flags(
            activation=activation,
            bias=bias is not None,
            scale=scale is not None,
            pre=residual == "pre",
            stats=stats,
            grad=True,
        )
        dstats = None if dsums is None else dsums.contiguous()
        sums = _convolve(x, weight, _dense(bias), _dense(scale), None, dy, dstats, g, flags, du)
        assert sums is not None
        dbias, dscale, dshift = sums.unbind(0)
    total = dbias is None and (need_bias or need_shift)
    dw = None
    if need_w or total:
        plan = plan_dw(g, matrix=matrix, total=total, channels_last=layout)
        part = torch.empty((plan.slices, g.K * g.K + 1, g.C), dtype=torch.float32, device=x.device)
        _launch(plan, part_ptr=part, x_ptr=x, du_ptr=du, **_strides("x", x), **_strides("d", du))
        rows = part.sum(0)
        dw = rows[:-1].t().reshape(weight.shape)
        if total:
            dbias = dshift = rows[-1]
    dx = None
    if need_x:
        dx = _like(x, g.H, g.W)
        if stride == 1:
            flags = Flags(pre=residual == "pre", post=residual == "post")
            res = dy if residual == "post" else None
            _convolve(du, weight.flip(2, 3), None, None, None, res, None, g.transposed(), flags, dx)
        else:
            plan = plan_dx(g, precise=_precise(x.dtype), channels_last=layout)
            taps = _direct_taps(weight, layout)
            _launch(plan, dx_ptr=dx, du_ptr=du, **taps, **_strides("x", dx), **_strides("d", du))
    return (
        x.new_empty((0,)) if dx is None else dx,
        _given(dw, need_w, weight, x),
        _given(dbias, need_bias, bias, x),
        _given(dscale, need_scale, scale, x),
        _given(dshift, need_shift, shift, x),
    )


def _given(grad: Tensor | None, need: bool, like: Tensor | None, x: Tensor) -> Tensor:
    """A parameter's gradient in its dtype and memory of its own, or an empty tensor where none is asked for."""
    if not need or grad is None or like is None:
        return x.new_empty((0,))
    return like.new_empty(like.shape).copy_(grad)


def _slope(u: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The activation and its derivative, in plain PyTorch."""
    if activation == "relu":
        return F.relu(u), (u > 0).to(u.dtype)
    if activation == "silu":
        s = torch.sigmoid(u)
        return u * s, s + u * s * (1 - s)
    if activation == "gelu_tanh":
        t = torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))
        inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * u**2)
        return 0.5 * u * (1 + t), 0.5 * (1 + t) + 0.5 * u * (1 - t * t) * inner
    if activation == "gelu":
        cdf = 0.5 * torch.erfc(-u * math.sqrt(0.5))
        return u * cdf, cdf + u * torch.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
    return u, torch.ones_like(u)


def _pre_activation(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, residual: str) -> Tensor:
    acc = torch.promote_types(x.dtype, torch.float32)
    b = None if bias is None else bias.to(acc)
    u = F.conv2d(x.to(acc), weight.to(acc), b, stride, padding, groups=x.shape[1])
    return u + x.to(acc) if residual == "pre" else u


def _forward_plain(
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
    u = _pre_activation(x, weight, bias, stride, padding, residual)
    y, _ = _slope(u, activation)
    sums = torch.stack((y.sum((0, 2, 3)), (y * y).sum((0, 2, 3)))) if stats else u.new_empty((0,))
    if scale is not None:
        y = y * scale.to(y.dtype)[:, None, None]
    if shift is not None:
        y = y + shift.to(y.dtype)[:, None, None]
    if residual == "post":
        y = y + x.to(y.dtype)
    out = _like(x, y.shape[2], y.shape[3])
    return out.copy_(y), sums.to(_sums_dtype(x))


def _sums_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _backward_plain(
    dy: Tensor,
    dsums: Tensor | None,
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
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    acc = _sums_dtype(x)
    dy = dy.to(acc)
    a, slope = _slope(_pre_activation(x, weight, bias, stride, padding, residual), activation)
    da = dy if scale is None else dy * scale.to(acc)[:, None, None]
    if stats and dsums is not None:
        da = da + dsums[0][:, None, None] + 2 * dsums[1][:, None, None] * a
    du = da * slope
    dx, dw, _ = torch.ops.aten.convolution_backward(
        du,
        x.to(acc),
        weight.to(acc),
        None,
        [stride, stride],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        x.shape[1],
        [needs[0], needs[1], False],
    )
    if needs[0]:
        extra = du if residual == "pre" else dy if residual == "post" else None
        dx = _like(x, x.shape[2], x.shape[3]).copy_(dx if extra is None else dx + extra)
    return (
        dx if needs[0] else x.new_empty((0,)),
        _given(dw, needs[1], weight, x),
        _given(du.sum((0, 2, 3)), needs[2], bias, x),
        _given((dy * a).sum((0, 2, 3)), needs[3], scale, x),
        _given(dy.sum((0, 2, 3)), needs[4], shift, x),
    )


def _forward_fake(
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
    height, width = ((n + 2 * padding - weight.shape[-1]) // stride + 1 for n in x.shape[2:])
    sums = x.new_empty((2, x.shape[1]) if stats else (0,), dtype=_sums_dtype(x))
    return _like(x, height, width), sums


def _backward_fake(
    dy: Tensor,
    dsums: Tensor | None,
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
    needs: list[bool],
) -> tuple[Tensor, ...]:
    dx = _like(x, x.shape[2], x.shape[3]) if needs[0] else x.new_empty((0,))
    rest = (
        like.new_empty(like.shape) if need and like is not None else x.new_empty((0,))
        for like, need in zip((weight, bias, scale, shift), needs[1:], strict=True)
    )
    return (dx, *rest)


_LIBRARY.impl("depthwise_conv2d", _forward_kernels if _INTERPRETED else _forward_plain, "CPU")
_LIBRARY.impl("depthwise_conv2d_backward", _backward_kernels if _INTERPRETED else _backward_plain, "CPU")
_LIBRARY.impl("depthwise_conv2d", _forward_kernels, "CUDA")
_LIBRARY.impl("depthwise_conv2d_backward", _backward_kernels, "CUDA")
torch.library.register_fake("vitkernels::depthwise_conv2d", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("vitkernels::depthwise_conv2d_backward", _backward_fake, lib=_LIBRARY)


@register_flop_formula(torch.ops.vitkernels.depthwise_conv2d)
def _forward_flops(x: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Multiply-adds of the convolution times two, as torch counts a convolution."""
    return 2 * weight[2] * weight[3] * math.prod(out_shape[0])


@register_flop_formula(torch.ops.vitkernels.depthwise_conv2d_backward)
def _backward_flops(dy: Any, dsums: Any, x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    """The products of the input's and the weight's gradients, where asked for; not the repeated convolution."""
    needs = args[8]
    return 2 * weight[2] * weight[3] * math.prod(dy) * (int(needs[0]) + int(needs[1]))
