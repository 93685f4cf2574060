"""Rules for torchvision's models; ConvNeXt's convolutions are torch's own, see fuse.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkernels.fusing.rules import (
    Rule,
    activation_name,
    continuous_table,
    cosine_heads,
    folds,
    grouped_by_channel,
    merge_heads,
    plain,
    refuse_dropout,
    refuse_head_dim,
    refuse_pair,
    split_heads,
    table_attention,
    window_attention,
)
from vitkernels.layers.convolution import conv_norm_act
from vitkernels.layers.derived import derived


def _refuse(m: Any) -> str | None:
    return refuse_dropout(m.attention_dropout) or refuse_head_dim(m.qkv.out_features // (3 * m.num_heads))


def _regions(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Along one axis, which of the three parts that a cyclic shift brings together each cell belongs to: [size]."""
    at = torch.arange(size, device=device)
    return (at >= size - window).long() + (at >= size - shift).long() if shift else torch.zeros_like(at)


def _to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, H, W, C] to [B * windows, cells of a window, C]."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))  # [B, rows, h, columns, w, C]
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device) -> Tensor:
    """[windows, N, N]: -100 between cells of a window that were no neighbours before the shift, else 0."""
    rows, columns = (_regions(*axis, device) for axis in zip(size, window, shift, strict=True))
    label = _to_windows((3 * rows[:, None] + columns)[None, :, :, None], window)
    return torch.where(label == label.transpose(1, 2), 0.0, -100.0)


def _shifted_window(self: Any, x: Tensor) -> Tensor:
    def project(windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return split_heads(self.qkv(windows), self.num_heads)

    scale = (self.qkv.out_features // (3 * self.num_heads)) ** -0.5
    return _in_windows(self, x, project, self.relative_position_bias_table, scale)


def _shifted_window2(self: Any, x: Tensor) -> Tensor:
    def project(windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.qkv.bias
        if bias is not None:
            own, _, values = bias.chunk(3)
            bias = torch.cat((own, torch.zeros_like(own), values))  # keys have none
        q, k, v = split_heads(F.linear(windows, self.qkv.weight, bias), self.num_heads)
        return *cosine_heads(q, k, self.logit_scale), v

    return _in_windows(self, x, project, continuous_table(self, self.cpb_mlp, self.relative_coords_table), 1.0)


def _in_windows(
    self: Any, x: Tensor, project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], table: Tensor, scale: float
) -> Tensor:
    """Maps [B, H, W, C] through attention in shifted windows; project: windows [B, N, C] to q, k and v."""
    height, width = x.shape[1:3]
    window = (int(self.window_size[0]), int(self.window_size[1]))
    right, below = -width % window[1], -height % window[0]
    padded = F.pad(x, (0, 0, 0, right, 0, below))
    size = (height + below, width + right)
    # A window as large as the map has no neighbours to shift towards.
    down, across = (0 if w >= s else int(by) for w, s, by in zip(window, size, self.shift_size, strict=True))
    shift = (down, across)
    mask = None
    if any(shift):
        padded = padded.roll((-down, -across), (1, 2))
        mask = derived(self, "mask", lambda: _mask(size, window, shift, x.device), key=(size, window, shift, x.device))
    q, k, v = project(_to_windows(padded, window))
    y = self.proj(window_attention(self, q, k, v, table, window, mask, scale))
    y = F.dropout(y, self.dropout, self.training)
    y = y.unflatten(1, window).unflatten(0, (x.shape[0], size[0] // window[0], size[1] // window[1]))
    y = y.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if any(shift):
        y = y.roll(shift, (1, 2))
    return y[:, :height, :width].contiguous()


def _maxvit(self: Any, x: Tensor) -> Tensor:
    q, k, v = split_heads(self.to_qkv(x.flatten(0, 1)), self.n_heads)
    grid = (self.size, self.size)
    y = table_attention(self, q, k, v, self.relative_position_bias_table, grid, self.scale_factor)
    return self.merge(merge_heads(y)).unflatten(0, x.shape[:2])


def _refuse_sequence(m: Any) -> str | None:
    conv, norm, *rest = m
    if len(rest) > 1 or (rest and activation_name(rest[0]) is None):
        return f"what follows its norm ({', '.join(type(one).__name__ for one in rest)}) is not known"
    return refuse_pair(conv, norm)


def _sequence(self: Any, input: Tensor) -> Tensor:
    conv, norm, *rest = self
    activation = activation_name(rest[0]) if rest else "none"
    if not folds(conv, norm) or activation is None:  # something has been replaced
        return plain(self, input)
    return conv_norm_act(input, conv, norm, activation)


RULES = (
    Rule(
        "torchvision.ops.misc:Conv2dNormActivation",
        "depthwise convolution, norm, activation",
        "0 1",
        _refuse_sequence,
        _sequence,
        ("",),
        lambda m: len(m) > 1 and grouped_by_channel(m[0]),
    ),
    Rule(
        "torchvision.models.swin_transformer:ShiftedWindowAttention",
        "shifted-window attention",
        "window_size shift_size qkv num_heads attention_dropout dropout relative_position_bias_table proj",
        _refuse,
        _shifted_window,
    ),
    Rule(
        "torchvision.models.swin_transformer:ShiftedWindowAttentionV2",
        "shifted-window attention by cosines",
        "window_size shift_size qkv num_heads attention_dropout dropout logit_scale cpb_mlp relative_coords_table proj",
        _refuse,
        _shifted_window2,
        ("qkv",),
    ),
    Rule(
        "torchvision.models.maxvit:RelativePositionalMultiHeadAttention",
        "attention with relative positions",
        "n_heads head_dim size to_qkv scale_factor merge relative_position_bias_table",
        lambda m: refuse_head_dim(m.head_dim),
        _maxvit,
    ),
)
