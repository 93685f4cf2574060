"""Rules for timm's models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkernels.attention.gated import gated_attention
from vitkernels.fusing.rules import (
    Rule,
    activation_name,
    continuous_table,
    conv_and_norm,
    cosine_heads,
    dense_attention,
    dense_window_attention,
    folds,
    grouped_by_channel,
    indexed_bias,
    is_conv2d,
    merge_heads,
    offset_bias,
    parts_of_heads,
    plain,
    refuse_dropout,
    refuse_head_dim,
    refuse_offsets,
    refuse_pair,
    split_heads,
    table_attention,
    tensorflow_padding,
    tokens,
    widened_attention,
    window_attention,
)
from vitkernels.layers.convolution import EPILOGUES, conv_act_norm, conv_norm_act, is_depthwise
from vitkernels.layers.derived import derived
from vitkernels.layers.folding import compute_dtype

_NO_BIAS = "it has no bias of its own: torch's own fused attention serves it, and takes one that blocks share as a mask"


def _refuse_swin(m: Any) -> str | None:
    return refuse_dropout(m.attn_drop.p) or refuse_head_dim(m.qkv.out_features // (3 * m.num_heads))


def _swin(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = split_heads(self.qkv(x), self.num_heads)
    grid = (int(self.window_size[0]), int(self.window_size[1]))
    y = window_attention(self, q, k, v, self.relative_position_bias_table, grid, mask, self.scale)
    return self.proj_drop(self.proj(y))


def _packed(m: Any, x: Tensor) -> Tensor:
    """q, k and v of the classes that hold their biases apart."""
    if m.q_bias is None:
        packed: Tensor = m.qkv(x)
        return packed
    joined = torch.cat((m.q_bias, m.k_bias, m.v_bias))
    return m.qkv(x) + joined if m.qkv_bias_separate else F.linear(x, m.qkv.weight, joined)


def _swin2(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = split_heads(_packed(self, x), self.num_heads)
    q, k = cosine_heads(q, k, self.logit_scale)
    grid = (int(self.window_size[0]), int(self.window_size[1]))
    table = continuous_table(self, self.cpb_mlp, self.relative_coords_table)
    return self.proj_drop(self.proj(window_attention(self, q, k, v, table, grid, mask, 1.0)))


def _refuse_swin2_cr(m: Any) -> str | None:
    return refuse_dropout(m.attn_drop.p) or refuse_head_dim(m.in_features // m.num_heads)


def _swin2_cr(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = split_heads(self.qkv(x), self.num_heads)
    q, k = cosine_heads(q, k, self.logit_scale)
    n, network = x.shape[1], self.meta_mlp

    def look(coordinates: Tensor, *_: Tensor) -> Tensor:
        return network(coordinates).T.reshape(-1, n, n)

    bias = derived(self, "bias", look, self.relative_coordinates_log, *network.parameters(), key=(n,))
    return self.proj_drop(self.proj(dense_window_attention(self, q, k, v, bias, mask, 1.0)))


def _refuse_beit(m: Any) -> str | None:
    if m.relative_position_bias_table is None:
        return _NO_BIAS
    return refuse_dropout(m.attn_drop.p) or refuse_head_dim(m.qkv.out_features // (3 * m.num_heads))


def _beit(self: Any, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
    bias = indexed_bias(self, self.relative_position_bias_table, self.relative_position_index)
    if shared_rel_pos_bias is not None:
        bias = bias + shared_rel_pos_bias
    y = dense_attention(*split_heads(_packed(self, x), self.num_heads), bias, self.scale)
    return self.proj_drop(self.proj(y))


def _refuse_positioned(m: Any) -> str | None:
    """For the modules that hold their bias in `rel_pos`."""
    if m.rel_pos is None:
        return _NO_BIAS
    if not hasattr(m.rel_pos, "get_bias"):
        return f"the bias of {type(m.rel_pos).__name__} is not known"
    return refuse_dropout(m.attn_drop.p) or refuse_head_dim(getattr(m, "dim_head", None) or m.head_dim)


def _positioned(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention [B, H, N, D] with the bias of `rel_pos`; returns [B, N, H * D]."""
    position = m.rel_pos
    if type(position).__name__ == "RelPosBias":
        table = position.relative_position_bias_table
        grid = (int(position.window_size[0]), int(position.window_size[1]))
        if table.shape[0] == (2 * grid[0] - 1) * (2 * grid[1] - 1):  # no rows for a class token
            return merge_heads(table_attention(position, q, k, v, table, grid, m.scale))
        bias = indexed_bias(position, table, position.relative_position_index)
    else:  # nobody here can tell what it depends on
        bias = position.get_bias()
    return dense_attention(q, k, v, bias if bias.ndim == 4 else bias[None], m.scale)


def _maxxvit_cl(self: Any, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
    packed = self.qkv(x).flatten(1, -2)
    if self.head_first:
        parts = packed.unflatten(-1, (self.num_heads, 3, self.dim_head)).unbind(3)
    else:
        parts = packed.unflatten(-1, (3, self.num_heads, self.dim_head)).unbind(2)
    y = _positioned(self, *(part.transpose(1, 2) for part in parts))
    return self.proj_drop(self.proj(y.unflatten(1, x.shape[1:-1])))


def _maxxvit_2d(self: Any, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
    packed = self.qkv(x).flatten(2).transpose(1, 2)  # [B, N, 3 H D]; no copy where the map is channels_last
    if self.head_first:
        parts = packed.unflatten(-1, (self.num_heads, 3, self.dim_head)).unbind(3)
    else:
        parts = packed.unflatten(-1, (3, self.num_heads, self.dim_head)).unbind(2)
    y = _positioned(self, *(part.transpose(1, 2) for part in parts))
    return self.proj_drop(self.proj(y.transpose(1, 2).unflatten(2, x.shape[2:])))


def _relpos(self: Any, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
    q, k, v = split_heads(self.qkv(x), self.num_heads)
    return self.proj_drop(self.proj(_positioned(self, self.q_norm(q), self.k_norm(k), v)))


def _gcvit(self: Any, x: Tensor, q_global: Tensor | None = None) -> Tensor:
    if self.use_global and q_global is not None:
        k, v = (part.transpose(1, 2) for part in self.qkv(x).unflatten(-1, (2, self.num_heads, -1)).unbind(2))
        q = q_global.repeat_interleave(x.shape[0] // q_global.shape[0], 0)  # the windows of an image are together
        q = q.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
    else:
        q, k, v = split_heads(self.qkv(x), self.num_heads)
    return self.proj_drop(self.proj(_positioned(self, q, k, v)))


def _levit(self: Any, x: Tensor) -> Tensor:
    q, k, v = parts_of_heads(self.qkv(x), self.num_heads, self.key_dim, self.key_dim, self.val_dim)
    y = widened_attention(q, k, v, offset_bias(self), self.scale)
    return self.proj(y.mT.unflatten(2, x.shape[2:]) if self.use_conv else y)


def _levit_downsample(self: Any, x: Tensor) -> Tensor:
    k, v = parts_of_heads(self.kv(x), self.num_heads, self.key_dim, self.val_dim)
    queries = self.q(x)
    (q,) = parts_of_heads(queries, self.num_heads, self.key_dim)
    y = widened_attention(q, k, v, offset_bias(self), self.scale)
    return self.proj(y.mT.unflatten(2, queries.shape[2:]) if self.use_conv else y)


def _tiny_vit(self: Any, x: Tensor) -> Tensor:
    return _efficientformer(self, self.norm(x))


def _efficientformer(self: Any, x: Tensor) -> Tensor:
    q, k, v = parts_of_heads(self.qkv(x), self.num_heads, self.key_dim, self.key_dim, self.val_dim)
    return self.proj(widened_attention(q, k, v, offset_bias(self), self.scale))


def _efficientformer_downsample(self: Any, x: Tensor) -> Tensor:
    values = self.v(x)
    (q,), (k,) = (parts_of_heads(layer(x), self.num_heads, self.key_dim) for layer in (self.q, self.k))
    (v,) = parts_of_heads(values, self.num_heads, self.d)
    y = widened_attention(q, k, v, offset_bias(self), self.scale)
    return self.proj(self.act(y.mT.unflatten(2, self.resolution2) + self.v_local(values)))


def _cascaded(self: Any, x: Tensor) -> Tensor:
    chunks, bias = x.chunk(len(self.qkvs), 1), offset_bias(self)
    heads: list[Tensor] = []
    for head, (project, local) in enumerate(zip(self.qkvs, self.dws, strict=True)):
        packed = project(chunks[0] if head == 0 else heads[-1] + chunks[head])
        q, k, v = packed.split((self.key_dim, self.key_dim, self.val_dim), 1)
        q, k, v = (tokens(part)[:, None] for part in (local(q), k, v))
        heads.append(widened_attention(q, k, v, bias[head : head + 1], self.scale).mT.unflatten(2, x.shape[2:]))
    return self.proj(torch.cat(heads, 1))


def _refuse_gpsa(m: Any) -> str | None:
    return refuse_dropout(m.attn_drop.p) or refuse_head_dim(m.dim // m.num_heads)


def _logits(weight: Tensor, bias: Tensor | None, between: Tensor) -> Tensor:
    """[1, N, N, 3] to [H, N, N]."""
    return F.linear(between, weight, bias)[0].permute(2, 0, 1)


def _gpsa(self: Any, x: Tensor) -> Tensor:
    n, between = x.shape[1], self.rel_indices
    unfit = between is None or between.shape[1] != n
    if unfit or (between.is_inference() and not torch.is_inference_mode_enabled()):
        with torch.inference_mode(False):  # else a later pass with gradients could not save it
            between = self.rel_indices = self.get_rel_indices(n)
    q, k = (part.transpose(1, 2) for part in self.qk(x).unflatten(-1, (2, self.num_heads, -1)).unbind(2))
    v = self.v(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
    layer = self.pos_proj
    logits = derived(layer, "logits", _logits, layer.weight, layer.bias, between)
    return self.proj_drop(self.proj(merge_heads(gated_attention(q, k, v, logits, self.gating_param, self.scale))))


def _inverted(self: Any, x: Tensor) -> Tensor:
    shortcut = x
    if self.conv_s2d is not None:
        x = self.bn_s2d(self.conv_s2d(x))
    x = conv_and_norm(x, self.conv_pw, self.bn1)
    x = self.se(self.aa(conv_and_norm(x, self.conv_dw, self.bn2)))
    x = conv_and_norm(x, self.conv_pwl, self.bn3)
    return self.drop_path(x) + shortcut if self.has_skip else x


def _separable(self: Any, x: Tensor) -> Tensor:
    shortcut = x
    if self.conv_s2d is not None:
        x = self.bn_s2d(self.conv_s2d(x))
    x = self.se(self.aa(conv_and_norm(x, self.conv_dw, self.bn1)))
    x = conv_and_norm(x, self.conv_pw, self.bn2)
    return self.drop_path(x) + shortcut if self.has_skip else x


def _conv_norm(self: Any, x: Tensor) -> Tensor:
    x = conv_and_norm(x, self.conv, self.bn)
    return x if self.aa is None else self.aa(x)


def _mbconv(self: Any, x: Tensor) -> Tensor:
    shortcut = self.shortcut(x)
    if isinstance(self.down, nn.Identity):
        x = conv_and_norm(x, self.conv1_1x1, self.norm1, before=self.pre_norm)
    else:
        x = conv_and_norm(self.down(self.pre_norm(x)), self.conv1_1x1, self.norm1)
    if self.se_early is None:
        x = conv_and_norm(x, self.conv2_kxk, self.norm2)
    else:
        x = self.norm2(self.se_early(self.conv2_kxk(x)))
    if self.se is not None:
        x = self.se(x)
    return self.drop_path(self.conv3_1x1(x)) + shortcut


def _refuse_mbconv(m: Any) -> str | None:
    if m.se_early is not None:
        return "squeeze-and-excitation stands between its depthwise convolution and the norm"
    return refuse_pair(m.conv2_kxk, m.norm2, tensorflow=True)


def _refuse_mixer(m: Any) -> str | None:
    parts = list(m.fn) if isinstance(m.fn, nn.Sequential) else []
    if len(parts) != 3 or not folds(parts[0], parts[2]) or not is_depthwise(parts[0]):
        return "it is not a depthwise convolution, an activation and a batch norm"
    return None if activation_name(parts[1]) in EPILOGUES else f"its activation {type(parts[1]).__name__} is not known"


def _mixer(self: Any, x: Tensor) -> Tensor:
    conv, activation, norm = self.fn
    if not folds(conv, norm):  # it has become a SyncBatchNorm, say
        return plain(self, x)
    return conv_act_norm(x, conv, norm, activation_name(activation) or "none", "post")


def _refuse_mlp(m: Any) -> str | None:
    if not is_depthwise(m.dwconv) or not is_conv2d(m.dwconv):
        return "its convolution is not one that the kernel takes"
    return None if activation_name(m.act) is not None else f"its activation {type(m.act).__name__} is not known"


def _mlp(self: Any, x: Tensor, feat_size: list[int]) -> Tensor:
    x = self.fc1(x)
    x = self.relu(x.transpose(1, 2).unflatten(2, tuple(feat_size)))
    x = conv_norm_act(x, self.dwconv, None, activation_name(self.act) or "none")
    return self.drop(self.fc2(self.drop(x.flatten(2).transpose(1, 2))))


def _refuse_same(m: Any) -> str | None:
    return None if is_depthwise(m) else "the kernel takes square filters of 2 to 9, undilated"


def _same(self: Any, x: Tensor) -> Tensor:
    padding = tensorflow_padding(x, self)
    if x.ndim != 4 or padding is None:
        return plain(self, x)
    return conv_norm_act(x.to(compute_dtype(x)), self, None, padding=padding)


_BLOCKS = "timm.models._efficientnet_blocks"
_OFFSETS = "attention with a bias of each offset"
_OFFSET = "num_heads key_dim scale attention_biases attention_bias_idxs"
_POSITIONED = "qkv num_heads rel_pos scale attn_drop.p proj proj_drop"
RULES = (
    Rule(
        "timm.models.swin_transformer:WindowAttention", "window attention",
        "qkv num_heads window_size relative_position_bias_table scale attn_drop.p proj proj_drop", _refuse_swin, _swin,
    ),
    Rule(
        "timm.models.swin_transformer_v2:WindowAttention", "window attention by cosines",
        "qkv num_heads window_size logit_scale cpb_mlp relative_coords_table q_bias k_bias v_bias qkv_bias_separate "
        "attn_drop.p proj proj_drop", _refuse_swin, _swin2, ("qkv",),
    ),
    Rule(
        "timm.models.swin_transformer_v2_cr:WindowMultiHeadAttention", "window attention by cosines",
        "in_features qkv num_heads logit_scale meta_mlp relative_coordinates_log attn_drop.p proj proj_drop",
        _refuse_swin2_cr, _swin2_cr,
    ),
    Rule(
        "timm.models.beit:Attention", "attention with relative positions",
        "qkv num_heads q_bias k_bias v_bias qkv_bias_separate relative_position_bias_table "
        "relative_position_index scale attn_drop.p proj proj_drop", _refuse_beit, _beit, ("qkv",),
    ),
    Rule(
        "timm.models.maxxvit:AttentionCl", "attention with relative positions",
        f"{_POSITIONED} dim_head head_first", _refuse_positioned, _maxxvit_cl,
    ),
    Rule(
        "timm.models.maxxvit:Attention2d", "attention with relative positions",
        f"{_POSITIONED} dim_head head_first", _refuse_positioned, _maxxvit_2d,
    ),
    Rule(
        "timm.models.vision_transformer_relpos:RelPosAttention", "attention with relative positions",
        f"{_POSITIONED} head_dim q_norm k_norm", _refuse_positioned, _relpos,
    ),
    Rule(
        "timm.models.gcvit:WindowAttentionGlobal", "window attention",
        f"{_POSITIONED} head_dim use_global", _refuse_positioned, _gcvit,
    ),
    Rule(
        "timm.models.levit:Attention", _OFFSETS, f"{_OFFSET} qkv val_dim use_conv proj", refuse_offsets, _levit,
    ),
    Rule(
        "timm.models.levit:AttentionDownsample", _OFFSETS, f"{_OFFSET} q kv val_dim use_conv proj", refuse_offsets,
        _levit_downsample,
    ),
    Rule(
        "timm.models.tiny_vit:Attention", _OFFSETS, f"{_OFFSET} norm qkv val_dim proj", refuse_offsets, _tiny_vit,
    ),
    Rule(
        "timm.models.efficientformer:Attention", _OFFSETS, f"{_OFFSET} qkv val_dim proj", refuse_offsets,
        _efficientformer,
    ),
    Rule(
        "timm.models.efficientformer_v2:Attention2d", "", "",
        lambda m: "its talking heads mix the scores of all heads, which no kernel computes",
        lambda self, x: plain(self, x),
    ),
    Rule(
        "timm.models.efficientformer_v2:Attention2dDownsample", _OFFSETS,
        f"{_OFFSET} q k v v_local d resolution2 act proj", lambda m: refuse_head_dim(m.d), _efficientformer_downsample,
    ),
    Rule(
        "timm.models.efficientvit_msra:CascadedGroupAttention", _OFFSETS, f"{_OFFSET} qkvs dws val_dim proj",
        refuse_offsets, _cascaded,
    ),
    Rule(
        "timm.models.convit:GPSA", "gated positional attention",
        "dim num_heads qk v rel_indices get_rel_indices pos_proj gating_param scale attn_drop.p proj proj_drop",
        _refuse_gpsa, _gpsa,
    ),
    Rule(
        "timm.layers.conv2d_same:Conv2dSame", "depthwise convolution", "", _refuse_same, _same,
        candidate=grouped_by_channel,
    ),
    Rule(
        f"{_BLOCKS}:InvertedResidual", "convolutions with norms and activations",
        "conv_s2d conv_pw bn1 conv_dw bn2 aa se conv_pwl bn3 drop_path has_skip",
        lambda m: refuse_pair(m.conv_dw, m.bn2, tensorflow=True), _inverted,
        ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"),
    ),
    Rule(
        f"{_BLOCKS}:DepthwiseSeparableConv", "convolutions with norms and activations",
        "conv_s2d conv_dw bn1 aa se conv_pw bn2 drop_path has_skip",
        lambda m: refuse_pair(m.conv_dw, m.bn1, tensorflow=True), _separable, ("conv_dw", "bn1", "conv_pw", "bn2"),
    ),
    Rule(
        "timm.layers.conv_bn_act:ConvNormAct", "depthwise convolution, norm, activation", "conv bn aa",
        lambda m: refuse_pair(m.conv, m.bn, tensorflow=True), _conv_norm, ("conv", "bn"),
        lambda m: grouped_by_channel(getattr(m, "conv", None)),
    ),
    Rule(
        "timm.models.maxxvit:MbConvBlock", "convolutions with norms and activations",
        "shortcut pre_norm down conv1_1x1 norm1 conv2_kxk norm2 se_early se conv3_1x1 drop_path",
        _refuse_mbconv, _mbconv, ("pre_norm", "conv1_1x1", "norm1", "conv2_kxk", "norm2"),
    ),
    Rule(
        "timm.models.convmixer:Residual", "depthwise convolution, activation, norm, shortcut",
        "fn", _refuse_mixer, _mixer, ("fn",),
    ),
    Rule(
        "timm.models.pvt_v2:MlpWithDepthwiseConv", "depthwise convolution and activation",
        "fc1 relu dwconv act drop fc2", _refuse_mlp, _mlp, ("dwconv", "act"),
    ),
)  # fmt: skip
