"""The two opaque torch operators behind `depthwise_conv`: forward and backward, with shapes, strides and FLOPs."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkernels.depthwise.plan import Flags, Geometry, conv_call, dw_call, dx_call, is_channels_last
from vitkernels.runtime.call import run_all
from vitkernels.runtime.device import EVERY_DEVICE, kernels_run_on

_LIBRARY = torch.library.Library("vitkernels", "FRAGMENT")
_LIBRARY.define(
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, SymInt stride, "
    "SymInt padding, str activation, str residual, bool stats) -> (Tensor, Tensor)"
)
# Its flags are integers: a trace cannot hold a list of bools.
_LIBRARY.define(
    "depthwise_conv2d_backward(Tensor dy, Tensor? dsums, Tensor x, Tensor weight, Tensor? bias, Tensor? scale, "
    "Tensor? shift, SymInt stride, SymInt padding, str activation, str residual, bool stats, int[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
forward_op = torch.ops.vitkernels.depthwise_conv2d.default
backward_op = torch.ops.vitkernels.depthwise_conv2d_backward.default


def _like(x: Tensor, height: int, width: int) -> Tensor:
    """An empty [B, C, height, width] in x's dtype and kind of layout."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty((x.shape[0], x.shape[1], height, width), dtype=x.dtype, device=x.device, memory_format=layout)


def _geometry(x: Tensor, weight: Tensor, stride: int, padding: int) -> Geometry:
    batch, channels, height, width = x.shape
    return Geometry(batch, channels, height, width, weight.shape[-1], stride, padding)


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
    given = {"bias": _dense(bias), "scale": _dense(scale), "shift": _dense(shift), "res": res}
    call, part = conv_call("fwd_stats" if stats else "fwd", y, x, weight, g, flags, **given)
    run_all([call])
    return y, x.new_empty((0,), dtype=torch.float32) if part is None else part.sum(0)


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
        given = {"bias": _dense(bias), "scale": _dense(scale), "res": dy, "dstats": _dense(dsums)}
        call, part = conv_call("bwd_du", du, x, weight, g, flags, **given)
        assert part is not None
        run_all([call])
        dbias, dscale, dshift = part.sum(0).unbind(0)
    total = dbias is None and (need_bias or need_shift)
    dw = None
    if need_w or total:
        call, part = dw_call(x, du, g, total=total)
        run_all([call])
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
            call, _ = conv_call("bwd_dx", dx, du, weight.flip(2, 3), g.transposed(), flags, res=res)
        else:
            call = dx_call(dx, du, weight, g)
        run_all([call])
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


def _forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return (_forward_kernels if kernels_run_on(x) else _forward_plain)(x, *rest)


def _backward(dy: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return (_backward_kernels if kernels_run_on(dy) else _backward_plain)(dy, *rest)


_LIBRARY.impl("depthwise_conv2d", _forward, EVERY_DEVICE)
_LIBRARY.impl("depthwise_conv2d_backward", _backward, EVERY_DEVICE)
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
