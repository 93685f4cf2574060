"""Which kernel CUDA's scaled_dot_product_attention takes, as operators that allocate and keep what it does.

The rules are those of torch's native/transformers/cuda/sdp_utils.cpp and attention.cpp, for sm_80 and later.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
LOW = (torch.float16, torch.bfloat16)
#: A flash kernel's backward adds up dQ in fp32, in rows and columns padded to these.
_FLASH_ROWS, _FLASH_COLUMNS = 128, 32
_EFFICIENT_ROWS = 64


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    cudnn: bool = False,
) -> Tensor:
    """`aten::scaled_dot_product_attention` of CUDA tensors, for fake ones; `cudnn`: whether that comes first."""
    kernel = choose(q, k, v, attn_mask, dropout_p, is_causal, enable_gqa, cudnn)
    scale_of = q.shape[-1] ** -0.5 if scale is None else scale
    if kernel == "math":
        return aten._scaled_dot_product_attention_math.default(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if kernel == "cudnn":
        mask = None if attn_mask is None else _additive(attn_mask, q.dtype)
        if mask is not None:
            mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        return aten._scaled_dot_product_cudnn_attention.default(
            q, k, v, mask, grad, dropout_p, is_causal, False, scale=scale_of
        )[0]
    if kernel == "flash":
        width = q.shape[-1]
        padding = -width % 8
        if padding:
            q, k, v = (F.pad(t, (0, padding)) for t in (q, k, v))
        out = aten._scaled_dot_product_flash_attention.default(q, k, v, dropout_p, is_causal, False, scale=scale_of)[0]
        return out[..., :width] if padding else out
    mask = None if attn_mask is None else _prepared(_additive(attn_mask, q.dtype), q, k)
    grad = grad or (mask is not None and torch.is_grad_enabled() and mask.requires_grad)
    return aten._scaled_dot_product_efficient_attention.default(
        q, k, v, mask, grad, dropout_p, is_causal, scale=scale_of
    )[0]


def choose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    enable_gqa: bool,
    cudnn: bool,
) -> str:
    """The kernel: "cudnn", "flash", "efficient" or "math"."""
    same_heads = q.ndim == k.ndim == v.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]
    dense = all(t.stride(-1) == 1 or t.shape[-1] == 1 for t in (q, k, v))
    width = q.shape[-1]
    one_width = width == k.shape[-1] == v.shape[-1]
    if not same_heads or not dense or q.dtype is torch.float64 or not all(t.numel() for t in (q, k, v)):
        return "math"
    square = not is_causal or q.shape[2] == k.shape[2]
    learned = attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled()
    if cudnn and q.dtype in LOW and width % 8 == 0 and width <= 128 and one_width and not learned:
        return "cudnn"
    if attn_mask is None and q.dtype in LOW and one_width and width <= 256 and square:
        return "flash"
    alignment = 8 if q.dtype in LOW else 4
    if width % alignment == 0 and v.shape[-1] % alignment == 0:
        return "efficient"
    return "math"


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), float("-inf"))


def _prepared(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Rows padded to eight elements, expanded to every image and head."""
    keys = mask.shape[-1]
    aligned = mask.stride(-1) == 1 and all(
        stride % 8 == 0 or size == 1 for size, stride in zip(mask.shape[:-1], mask.stride()[:-1], strict=True)
    )
    if not aligned:
        mask = F.pad(mask, (0, 8 - keys % 8))[..., :keys]
    return mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


def workspace(q: Tensor, flash: bool) -> int:
    """Bytes that a backward kernel takes for its sums: q is [B, H, N, D]."""
    batch, heads, tokens, width = q.shape
    if flash:
        rows = -(-tokens // _FLASH_ROWS) * _FLASH_ROWS
        columns = -(-width // _FLASH_COLUMNS) * _FLASH_COLUMNS
        return 4 * batch * heads * rows * (columns + 1)
    rows = -(-tokens // _EFFICIENT_ROWS) * _EFFICIENT_ROWS
    return 4 * batch * heads * rows * (-(-width // _FLASH_COLUMNS) * _FLASH_COLUMNS + 1)


__all__ = ["attention", "choose", "workspace"]
