"""The launches of `depthwise_conv` at its cases, as the audit reads them; plans come from the run-time functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitkernels.depthwise.conv import DEPTHWISE_CONV2D_CASES, DepthwiseCase
from vitkernels.depthwise.plan import Flags, Geometry, conv_call, dw_call, dx_call, on_matrix_unit
from vitkernels.runtime.call import Call
from vitkernels.runtime.launch import Launch

# Every case in bf16 channels_last; the other layout and fp32 where each kernel of theirs is met at least once.
_ALSO_NCHW = ("cmt_s-a-irffn", "cmt_s-a-reduce", "convmixer_1536_20", "efficientnet_b0-s5")
_ALSO_FP32 = ("cmt_s-a-irffn", "cmt_s-a-reduce", "efficientnet_b0-s3", "convnext_t-s1")

_SPECIAL = {"none": 0, "relu": 0, "silu": 2, "gelu": 1, "gelu_tanh": 2}


def audit_launches(arch: int) -> list[Launch]:
    """Forward, forward with sums, and the backward kernels of every case; the choice does not depend on `arch`."""
    found: list[Launch] = []
    for case in DEPTHWISE_CONV2D_CASES:
        found += _launches(case, torch.bfloat16, channels_last=True)
        if case.name in _ALSO_NCHW:
            found += _launches(case, torch.bfloat16, channels_last=False)
        if case.name in _ALSO_FP32:
            found += _launches(case, torch.float32, channels_last=True)
    return found


def _launches(case: DepthwiseCase, dtype: torch.dtype, *, channels_last: bool) -> Iterator[Launch]:
    g = Geometry(case.B, case.C, case.H, case.W, case.k, case.stride, case.padding)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    name = f"{case.name}-b{case.B}-{'nhwc' if channels_last else 'nchw'}"

    def image(height: int, width: int) -> Tensor:
        return torch.empty((g.B, g.C, height, width), dtype=dtype, device="meta", memory_format=layout)

    x, y = image(g.H, g.W), image(g.OH, g.OW)
    matrix = on_matrix_unit(x, case.stride)
    weight = torch.empty((g.C, 1, g.K, g.K), dtype=dtype, device="meta")
    vector = torch.empty(g.C, device="meta")

    def launch(call: Call, elements: int, moved: int, special: int) -> Launch:
        taps = g.K * g.K * y.numel()
        return replace(
            call.audit("depthwise_conv2d", name, 0, elements), bytes=dtype.itemsize * moved, special=special,
            matrix_flops=2 * taps if matrix else 0, fma=0 if matrix else taps,
        )  # fmt: skip

    def conv(pass_name: str, out: Tensor, given: Tensor, sizes: Geometry, flags: Flags) -> Launch:
        call, _ = conv_call(
            pass_name, out, given, weight, sizes, flags,
            bias=vector if flags.bias else None,
            scale=vector if flags.scale else None,
            shift=vector if flags.shift else None,
            res=out if flags.post or flags.grad else None,
            dstats=torch.empty((2, g.C), device="meta") if flags.grad and flags.stats else None,
        )  # fmt: skip
        extra = out.numel() if flags.grad or (pass_name == "bwd_dx" and flags.post) else 0
        special = out.numel() * (_SPECIAL[flags.activation] + (flags.grad and flags.activation == "gelu"))
        return launch(call, out.numel(), given.numel() + out.numel() + extra, special)

    pre, post = case.residual == "pre", case.residual == "post"
    common: dict[str, Any] = {"activation": case.activation, "bias": case.bias, "pre": pre}
    yield conv("fwd", y, x, g, Flags(**common, scale=case.affine, shift=case.affine, post=post))
    if case.affine:  # trained with batch statistics of the activation
        yield conv("fwd_stats", y, x, g, Flags(**common, stats=True))
        yield conv("bwd_du", y, x, g, Flags(**common, stats=True, grad=True))
    if case.stride == 1:
        yield conv("bwd_dx", x, y, g.transposed(), Flags(pre=pre, post=post))
    else:
        yield launch(dx_call(x, y, weight, g), x.numel(), x.numel() + y.numel(), 0)
    yield launch(dw_call(x, y, g, total=not case.affine)[0], y.numel(), x.numel() + y.numel(), 0)
