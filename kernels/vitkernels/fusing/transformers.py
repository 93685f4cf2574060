"""Rules for transformers' models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vitkernels.fusing.rules import (
    Rule,
    activation_name,
    dense_attention,
    is_conv2d,
    plain,
    refuse_dropout,
    refuse_head_dim,
    window_attention,
)
from vitkernels.layers.convolution import conv_norm_act, is_depthwise


def _refuse(m: Any) -> str | None:
    chosen = getattr(m.config, "_attn_implementation", None)
    if chosen not in (None, "sdpa"):
        return (
            f"its attn_implementation is {chosen!r} and not sdpa; eager returns weights, which the kernels never have"
        )
    return refuse_dropout(m.attention_dropout) or refuse_head_dim(m.head_dim)


def _project(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    layers = (m.q_proj, m.k_proj, m.v_proj)
    q, k, v = (layer(x).unflatten(-1, (-1, m.head_dim)).transpose(1, 2) for layer in layers)
    return q, k, v


def _swin(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    position = self.relative_position_bias
    grid = (int(position.window_size[0]), int(position.window_size[1]))
    if hidden_states.shape[1] != grid[0] * grid[1] or kwargs.get("output_attentions"):
        return plain(self, hidden_states, attention_mask, **kwargs)
    q, k, v = _project(self, hidden_states)
    y = window_attention(self, q, k, v, position.relative_position_bias_table, grid, attention_mask, self.scaling)
    return self.o_proj(y), None


def _beit(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    mask = attention_mask
    if mask is None or mask.shape[0] != 1 or mask.shape[1] == 1 or kwargs.get("output_attentions"):
        return plain(self, hidden_states, attention_mask, **kwargs)
    q, k, v = _project(self, hidden_states)
    return self.o_proj(dense_attention(q, k, v, mask, self.scaling)), None


def _refuse_beit(m: Any) -> str | None:
    biased = getattr(m.config, "use_relative_position_bias", False)
    biased = biased or getattr(m.config, "use_shared_relative_position_bias", False)
    return _refuse(m) if biased else "it has no bias, and without one torch's own fused attention serves it"


def _refuse_mlp(m: Any) -> str | None:
    conv, activation = m.dwconv.dwconv, m.activation_fn
    if not is_depthwise(conv) or not is_conv2d(conv):
        return "its convolution is not one that the kernel takes"
    return (
        None if activation_name(activation) is not None else f"its activation {type(activation).__name__} is not known"
    )


def _mlp(self: Any, hidden_states: Tensor, height: int, width: int) -> Tensor:
    x = self.fc1(hidden_states).transpose(1, 2).unflatten(2, (height, width))
    x = conv_norm_act(x, self.dwconv.dwconv, None, activation_name(self.activation_fn) or "none")
    return self.dropout(self.fc2(self.dropout(x.flatten(2).transpose(1, 2))))


_ATTENTION = "config head_dim attention_dropout scaling q_proj k_proj v_proj o_proj"
RULES = (
    Rule(
        "transformers.models.swin.modeling_swin:SwinAttention",
        "window attention",
        f"{_ATTENTION} relative_position_bias.window_size relative_position_bias.relative_position_bias_table",
        _refuse,
        _swin,
    ),
    Rule(
        "transformers.models.beit.modeling_beit:BeitAttention",
        "attention with relative positions",
        _ATTENTION,
        _refuse_beit,
        _beit,
    ),
    Rule(
        "transformers.models.segformer.modeling_segformer:SegformerMixMLP",
        "depthwise convolution and activation",
        "fc1 dwconv.dwconv activation_fn dropout fc2",
        _refuse_mlp,
        _mlp,
        ("dwconv", "activation_fn"),
    ),
)
