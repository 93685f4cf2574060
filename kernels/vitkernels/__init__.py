"""Fused Triton kernels for vision transformers, each with an eager PyTorch reference."""

from vitkernels.attention.bias import (
    BIAS_ATTENTION_CASES,
    BiasAttentionCase,
    bias_attention,
    bias_attention_reference,
    bias_attention_work,
)
from vitkernels.attention.gated import (
    GATED_ATTENTION_CASES,
    GatedAttentionCase,
    gated_attention,
    gated_attention_reference,
    gated_attention_work,
)
from vitkernels.attention.relative import (
    RELATIVE_ATTENTION_CASES,
    RelativeAttentionCase,
    expand_relative_bias,
    relative_attention,
    relative_attention_reference,
    relative_attention_work,
)
from vitkernels.depthwise.conv import (
    DEPTHWISE_CONV2D_CASES,
    DepthwiseCase,
    batch_norm_affine,
    depthwise_conv2d,
    depthwise_conv2d_reference,
    depthwise_conv2d_stats,
    depthwise_conv2d_work,
)
from vitkernels.fusing.fuse import FuseReport, freeze, fuse, is_fused, refresh, thaw, unfuse
from vitkernels.reduced.attention import (
    REDUCED_ATTENTION_CASES,
    ReducedAttentionCase,
    ReducedAttentionWeights,
    reduced_attention,
    reduced_attention_reference,
    reduced_attention_work,
)
from vitkernels.runtime.launch import Descriptor, Launch
from vitkernels.runtime.recording import launches_of

__all__ = [
    "BIAS_ATTENTION_CASES",
    "DEPTHWISE_CONV2D_CASES",
    "GATED_ATTENTION_CASES",
    "REDUCED_ATTENTION_CASES",
    "RELATIVE_ATTENTION_CASES",
    "BiasAttentionCase",
    "DepthwiseCase",
    "Descriptor",
    "FuseReport",
    "GatedAttentionCase",
    "Launch",
    "ReducedAttentionCase",
    "ReducedAttentionWeights",
    "RelativeAttentionCase",
    "batch_norm_affine",
    "bias_attention",
    "bias_attention_reference",
    "bias_attention_work",
    "depthwise_conv2d",
    "depthwise_conv2d_reference",
    "depthwise_conv2d_stats",
    "depthwise_conv2d_work",
    "expand_relative_bias",
    "freeze",
    "fuse",
    "gated_attention",
    "gated_attention_reference",
    "gated_attention_work",
    "is_fused",
    "launches_of",
    "reduced_attention",
    "reduced_attention_reference",
    "reduced_attention_work",
    "refresh",
    "relative_attention",
    "relative_attention_reference",
    "relative_attention_work",
    "thaw",
    "unfuse",
]
