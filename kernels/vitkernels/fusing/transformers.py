"""Rules for transformers' models."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from vitkernels.fusing.rules import (
    Rule,
    activation_name,
    continuous_table,
    cosine_heads,
    dense_attention,
    folds,
    is_conv2d,
    offset_bias,
    parts_of_heads,
    plain,
    refuse_dropout,
    refuse_head_dim,
    refuse_pair,
    widened_attention,
    window_attention,
)
from vitkernels.layers.convolution import conv_norm_act, is_depthwise

_NO_BIAS = "it has no bias, and without one torch's own fused attention serves it"


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
    return _refuse(m) if biased else _NO_BIAS


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


def _refuse_swin2(m: Any) -> str | None:
    return refuse_dropout(m.dropout.p) or refuse_head_dim(m.attention_head_size)


def _heads(m: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    layers = (m.query, m.key, m.value)
    q, k, v = (layer(x).unflatten(-1, (-1, m.attention_head_size)).transpose(1, 2) for layer in layers)
    return q, k, v


def _swin2(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool | None = False
) -> tuple[Tensor, ...]:
    grid = (int(self.window_size[0]), int(self.window_size[1]))
    if hidden_states.shape[1] != grid[0] * grid[1] or output_attentions:
        return cast(tuple[Tensor, ...], plain(self, hidden_states, attention_mask, output_attentions))
    q, k, v = _heads(self, hidden_states)
    q, k = cosine_heads(q, k, self.logit_scale)
    table = continuous_table(self, self.continuous_position_bias_mlp, self.relative_coords_table)
    mask = None if attention_mask is None else 2 * attention_mask  # the class adds it twice
    return (window_attention(self, q, k, v, table, grid, mask, 1.0),)


def _data2vec(
    self: Any,
    hidden_states: Tensor,
    output_attentions: bool = False,
    relative_position_bias: Tensor | None = None,
    interpolate_pos_encoding: bool = False,
    resolution: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    given = (output_attentions, relative_position_bias, interpolate_pos_encoding, resolution)
    bias = relative_position_bias
    if self.has_relative_position_bias and resolution is not None:
        patch, (height, width) = self.config.patch_size, resolution
        size = (height // patch, width // patch)
        own = self.relative_position_bias(size, interpolate_pos_encoding, dim_size=hidden_states.shape[1])
        bias = own if bias is None else own + bias
    if bias is None or output_attentions:
        return cast(tuple[Tensor, Tensor | None], plain(self, hidden_states, *given))
    q, k, v = _heads(self, hidden_states)
    return dense_attention(q, k, v, bias, self.attention_head_size**-0.5), None


def _refuse_data2vec(m: Any) -> str | None:
    biased = m.has_relative_position_bias or getattr(m.config, "use_shared_relative_position_bias", False)
    return _refuse_swin2(m) if biased else _NO_BIAS


def _refuse_levit(m: Any) -> str | None:
    return refuse_head_dim(int(m.attention_ratio * m.key_dim))


def _levit(self: Any, hidden_state: Tensor) -> Tensor:
    sizes = (self.key_dim, self.key_dim, self.attention_ratio * self.key_dim)
    q, k, v = parts_of_heads(self.queries_keys_values(hidden_state), self.num_attention_heads, *sizes)
    return self.projection(self.activation(widened_attention(q, k, v, offset_bias(self), self.scale)))


def _levit_subsample(self: Any, hidden_state: Tensor) -> Tensor:
    heads, dim = self.num_attention_heads, self.key_dim
    k, v = parts_of_heads(self.keys_values(hidden_state), heads, dim, self.attention_ratio * dim)
    (q,) = parts_of_heads(self.queries(self.queries_subsample(hidden_state)), heads, dim)
    return self.projection(self.activation(widened_attention(q, k, v, offset_bias(self), self.scale)))


def _refuse_efficientnet(m: Any) -> str | None:
    if activation_name(m.depthwise_act) is None:
        return f"its activation {type(m.depthwise_act).__name__} is not known"
    return refuse_pair(m.depthwise_conv, m.depthwise_norm)


def _efficientnet(self: Any, hidden_states: Tensor) -> Tensor:
    conv, norm, activation = self.depthwise_conv, self.depthwise_norm, activation_name(self.depthwise_act)
    padding = self.depthwise_conv_pad.padding if self.stride == 2 else ()  # left, right, above, below
    if not folds(conv, norm) or activation is None or padding[:2] != padding[2:]:
        return cast(Tensor, plain(self, hidden_states))
    return conv_norm_act(hidden_states, conv, norm, activation, padding=padding[:2] or None)


_ATTENTION = "config head_dim attention_dropout scaling q_proj k_proj v_proj o_proj"
_SELF = "attention_head_size query key value dropout.p"
_OFFSET = "num_attention_heads key_dim attention_ratio scale attention_biases attention_bias_idxs projection activation"
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
        "transformers.models.swinv2.modeling_swinv2:Swinv2SelfAttention",
        "window attention by cosines",
        f"{_SELF} window_size logit_scale continuous_position_bias_mlp relative_coords_table",
        _refuse_swin2,
        _swin2,
    ),
    Rule(
        "transformers.models.data2vec.modeling_data2vec_vision:Data2VecVisionSdpaSelfAttention",
        "attention with relative positions",
        f"{_SELF} config has_relative_position_bias",
        _refuse_data2vec,
        _data2vec,
    ),
    Rule(
        "transformers.models.levit.modeling_levit:LevitAttention",
        "attention with a bias of each offset",
        f"{_OFFSET} queries_keys_values",
        _refuse_levit,
        _levit,
    ),
    Rule(
        "transformers.models.levit.modeling_levit:LevitAttentionSubsample",
        "attention with a bias of each offset",
        f"{_OFFSET} keys_values queries queries_subsample",
        _refuse_levit,
        _levit_subsample,
    ),
    Rule(
        "transformers.models.efficientnet.modeling_efficientnet:EfficientNetDepthwiseLayer",
        "depthwise convolution, norm, activation",
        "stride depthwise_conv_pad.padding depthwise_conv depthwise_norm depthwise_act",
        _refuse_efficientnet,
        _efficientnet,
        ("depthwise_conv_pad", "depthwise_conv", "depthwise_norm", "depthwise_act"),
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
