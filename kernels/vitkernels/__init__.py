"""Fused Triton kernels for vision transformers, each with an eager PyTorch reference."""

from vitkernels.bias_attention import (
    BIAS_ATTENTION_CASES,
    bias_attention,
    bias_attention_reference,
    bias_attention_work,
)
from vitkernels.gated_attention import (
    GATED_ATTENTION_CASES,
    gated_attention,
    gated_attention_reference,
    gated_attention_work,
)
from vitkernels.relative_attention import (
    RELATIVE_ATTENTION_CASES,
    expand_relative_bias,
    relative_attention,
    relative_attention_reference,
    relative_attention_work,
)

__all__ = [
    "BIAS_ATTENTION_CASES",
    "GATED_ATTENTION_CASES",
    "RELATIVE_ATTENTION_CASES",
    "bias_attention",
    "bias_attention_reference",
    "bias_attention_work",
    "expand_relative_bias",
    "gated_attention",
    "gated_attention_reference",
    "gated_attention_work",
    "relative_attention",
    "relative_attention_reference",
    "relative_attention_work",
]
