"""Activations and their derivatives on fp32 tiles, written with Triton's own operators so that they run interpreted.

GELU needs Q(t) = 1 - Phi(t), t = |u|: gelu(u) = max(u, 0) - t Q(t), which keeps the relative accuracy of the negative
tail. log2 Q is so smooth that a polynomial of degree five and one exp2 give Q to 2.5e-4 (relative, t <= 5.5; the
minimax fit is repeated by the tests), an eighth of bf16's half ulp and half of fp16's, in eight instructions and one
special-function result. fp32 tensors take the full erf instead.
"""

# Tiles have Triton types.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from vitkernels.runtime.constants import LOG2E

ACTIVATIONS = ("none", "relu", "silu", "gelu", "gelu_tanh")

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_LOG2_SQRT_2PI = tl.constexpr(1.3257480647361593)
# tanh form: u sigmoid(2 sqrt(2 / pi) (u + 0.044715 u^3)); the gain in base two, its cubic part, and the inner slope.
_TANH_GAIN = tl.constexpr(2.302208198144325)
_TANH_THIRD = tl.constexpr(0.1029432395800235)
_TANH_SLOPE0 = tl.constexpr(1.5957691216057308)
_TANH_SLOPE2 = tl.constexpr(0.21406444881780076)
_Q0 = tl.constexpr(-1.000359058380127)
_Q1 = tl.constexpr(-1.1462608575820923)
_Q2 = tl.constexpr(-0.469681054353714)
_Q3 = tl.constexpr(-0.04459903761744499)
_Q4 = tl.constexpr(0.004869779106229544)
_Q5 = tl.constexpr(-0.00023325170332100242)


@triton.jit
def normal_tail(t):
    """Q(t) = 1 - Phi(t) for t >= 0 to 2.5e-4 of itself up to 5.5, falling to 0 beyond."""
    p = t * _Q5 + _Q4
    p = p * t + _Q3
    p = p * t + _Q2
    p = p * t + _Q1
    p = p * t + _Q0
    return tl.exp2(p)


@triton.jit
def activate(u, ACT: tl.constexpr, PRECISE: tl.constexpr):
    """The activation of an fp32 tile; PRECISE asks for fp32 accuracy of the exact GELU."""
    if ACT == "relu":
        a = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "silu":
        a = u / (1.0 + tl.exp2(u * -LOG2E))
    elif ACT == "gelu_tanh":
        a = u / (1.0 + tl.exp2(u * (u * u * -_TANH_THIRD - _TANH_GAIN)))
    elif ACT == "gelu":
        if PRECISE:
            a = 0.5 * u * (1.0 + tl.erf(u * _SQRT_HALF))
        else:
            t = tl.abs(u)
            a = tl.maximum(u, 0.0) - t * normal_tail(t)
    else:
        a = u
    return a


@triton.jit
def activate_with_slope(u, ACT: tl.constexpr, PRECISE: tl.constexpr):
    """The activation of an fp32 tile and its derivative there."""
    if ACT == "relu":
        a = tl.maximum(u, 0.0, propagate_nan=tl.PropagateNan.ALL)
        slope = tl.where(u <= 0.0, 0.0, 1.0)
    elif ACT == "silu":
        s = 1.0 / (1.0 + tl.exp2(u * -LOG2E))
        a = u * s
        slope = s + a * (1.0 - s)
    elif ACT == "gelu_tanh":
        square = u * u
        s = 1.0 / (1.0 + tl.exp2(u * (square * -_TANH_THIRD - _TANH_GAIN)))
        a = u * s
        slope = s + a * (1.0 - s) * (square * _TANH_SLOPE2 + _TANH_SLOPE0)
    elif ACT == "gelu":
        if PRECISE:
            cdf = 0.5 * (1.0 + tl.erf(u * _SQRT_HALF))
        else:
            tail = normal_tail(tl.abs(u))
            cdf = tl.where(u > 0.0, 1.0 - tail, tail)
        a = u * cdf
        slope = cdf + u * tl.exp2(u * u * (-0.5 * LOG2E) - _LOG2_SQRT_2PI)
    else:
        a = u
        slope = tl.full(u.shape, 1.0, tl.float32)
    return a, slope


@triton.jit
def times_slope(dy, slope, ACT: tl.constexpr):
    """dy times the slope; where a ReLU lets nothing through also of a dy that is no number."""
    return tl.where(slope > 0.0, dy, 0.0) if ACT == "relu" else dy * slope
