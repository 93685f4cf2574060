"""The launches of `depthwise_conv` at its cases, as the audit reads them; plans come from the run-time functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitkernels.depthwise.conv import DEPTHWISE_CONV2D_CASES, DepthwiseCase
from vitkernels.depthwise.plan import Flags, Geometry, Plan, plan_conv, plan_dw, plan_dx
from vitkernels.runtime.launch import Launch

# Every case in bf16 channels_last; the other layout and fp32 where each kernel of theirs is met at least once.
_ALSO_NCHW = ("cmt_s-a-irffn", "cmt_s-a-reduce", "convmixer_1536_20", "efficientnet_b0-s5")
_ALSO_FP32 = ("cmt_s-a-irffn", "cmt_s-a-reduce", "efficientnet_b0-s3", "convnext_t-s1")

_SPECIAL = {"none": 0, "relu": 0, "silu": 2, "gelu": 1, "gelu_tanh": 2}


def audit_launches(arch: int) -> list[Launch]:
    """Forward, forward with sums, and the backward kernels of every case; the choice does not depend on `arch`."""
    found: list[Launch] = []
    for case in DEPTHWISE_CONV2D_CASES:
        found += _launches(case, "bf16", channels_last=True)
        if case.name in _ALSO_NCHW:
            found += _launches(case, "bf16", channels_last=False)
        if case.name in _ALSO_FP32:
            found += _launches(case, "fp32", channels_last=True)
    return found


def _strides(letter: str, g: Geometry, height: int, width: int, channels_last: bool) -> dict[str, int]:
    channels = g.C
    plane = height * width
    steps = (channels * plane, 1, width * channels, channels) if channels_last else (channels * plane, plane, width, 1)
    return {f"stride_{letter}{axis}": step for axis, step in zip("bchw", steps, strict=True)}


def _launches(case: DepthwiseCase, dtype: str, *, channels_last: bool) -> Iterator[Launch]:
    g = Geometry(case.B, case.C, case.H, case.W, case.k, case.stride, case.padding)
    precise = dtype == "fp32"
    matrix = case.stride == 1 and not precise
    item = 4 if precise else 2
    outputs, inputs = g.B * g.C * g.OH * g.OW, g.B * g.C * g.H * g.W
    taps = case.k * case.k * outputs
    name = f"{case.name}-b{case.B}-{'nhwc' if channels_last else 'nchw'}"

    weight = {"stride_wc": 1 if channels_last else case.k**2, "stride_wt": case.C if channels_last else 1}

    def launch(pass_name: str, plan: Plan, tensors: dict[str, Any], elements: int, moved: int, special: int) -> Launch:
        return Launch(
            kernel=plan.kernel,
            op="depthwise_conv2d",
            case=name,
            pass_name=pass_name,
            dtype=dtype,
            args={**tensors, **plan.args},
            grid=plan.grid,
            elements=elements,
            bytes=item * moved,
            matrix_flops=2 * taps if matrix else 0,
            fma=0 if matrix else taps,
            special=special,
            num_warps=plan.num_warps,
            num_stages=plan.num_stages,
            options={} if plan.maxnreg is None else {"maxnreg": plan.maxnreg},
        )

    def conv(pass_name: str, sizes: Geometry, flags: Flags) -> Launch:
        plan = plan_conv(sizes, flags, matrix=matrix, precise=precise, channels_last=channels_last)
        out = sizes.B * sizes.C * sizes.OH * sizes.OW
        tensors = {
            "y_ptr": f"*{dtype}",
            "part_ptr": "*fp32" if flags.grad or flags.stats else None,
            "x_ptr": f"*{dtype}",
            "w_ptr": f"*{dtype}",
            "bias_ptr": "*fp32" if flags.bias else None,
            "scale_ptr": "*fp32" if flags.scale else None,
            "shift_ptr": "*fp32" if flags.shift else None,
            "res_ptr": f"*{dtype}" if flags.post or flags.grad else None,
            "dstats_ptr": "*fp32" if flags.grad and flags.stats else None,
            **_strides("x", sizes, sizes.H, sizes.W, channels_last),
            **_strides("y", sizes, sizes.OH, sizes.OW, channels_last),
            **_strides("r", sizes, sizes.OH, sizes.OW, channels_last),
            **({} if matrix else weight),
        }
        extra = out if flags.grad or (pass_name == "bwd_dx" and flags.post) else 0
        moved = sizes.B * sizes.C * sizes.H * sizes.W + out + extra
        special = out * (_SPECIAL[flags.activation] + (flags.grad and flags.activation == "gelu"))
        return launch(pass_name, plan, tensors, out, moved, special)

    pre, post = case.residual == "pre", case.residual == "post"
    common: dict[str, Any] = {"activation": case.activation, "bias": case.bias, "pre": pre}
    yield conv("fwd", g, Flags(**common, scale=case.affine, shift=case.affine, post=post))
    if case.affine:  # trained with batch statistics of the activation
        yield conv("fwd_stats", g, Flags(**common, stats=True))
        yield conv("bwd_du", g, Flags(**common, stats=True, grad=True))
    into = {
        **_strides("x", g, g.H, g.W, channels_last),
        **_strides("d", g, g.OH, g.OW, channels_last),
        "du_ptr": f"*{dtype}",
    }
    if case.stride == 1:
        yield conv("bwd_dx", g.transposed(), Flags(pre=pre, post=post))
    else:
        tensors = {**into, **weight, "dx_ptr": f"*{dtype}", "w_ptr": f"*{dtype}"}
        plan = plan_dx(g, precise=precise, channels_last=channels_last)
        yield launch("bwd_dx", plan, tensors, inputs, inputs + outputs, 0)
    plan = plan_dw(g, matrix=matrix, total=not case.affine, channels_last=channels_last)
    yield launch("bwd_dw", plan, {**into, "part_ptr": "*fp32", "x_ptr": f"*{dtype}"}, outputs, inputs + outputs, 0)
