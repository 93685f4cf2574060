"""What `fuse` is told about a class of another library, and what its rules share."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitkernels.attention.bias import bias_attention
from vitkernels.attention.relative import expand_relative_bias, relative_attention
from vitkernels.layers.convolution import conv_norm_act, is_depthwise
from vitkernels.layers.derived import derived, wants_grad
from vitkernels.layers.folding import compute_dtype

Grid = tuple[int, int]


@dataclass(frozen=True)
class Rule:
    """How instances of one class are served.

    class_name: "module:Class"; subclasses are other classes.
    what: what the kernels take over, for the report.
    reads: attributes, dotted inside of children, without which an instance is another version's class.
    refusal: why an instance is left as it is, or None.
    forward: the method that replaces the class's; same arguments, by the same names, and results. Where a call is not
        what the kernels serve it calls `plain`.
    consumed: names of children that `forward` reads without calling them.
    candidate: whether an instance might be served at all; what might not is in no report.
    """

    class_name: str
    what: str
    reads: str
    refusal: Callable[[Any], str | None]
    forward: Callable[..., Any]
    consumed: tuple[str, ...] = ()
    candidate: Callable[[Any], bool] = lambda module: True


def refuse_version(module: nn.Module, rule: Rule) -> str | None:
    """Whether the library's class is the one that the rule was written for, by what it has and how it is called."""
    missing = [name for name in rule.reads.split() if not _has(module, name)]
    if missing:
        return f"this version of its library has it without {', '.join(missing)}"
    theirs, ours = (_arguments(forward) for forward in (type(module).forward, rule.forward))
    return None if theirs == ours else f"this version of its library calls it with ({', '.join(theirs)})"


def _has(module: nn.Module, dotted: str) -> bool:
    found: Any = module
    for name in dotted.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def _arguments(forward: Callable[..., Any]) -> list[str]:
    """Names of the arguments after self, those that have no names among them."""
    return [str(p).partition(":")[0].partition("=")[0] for p in inspect.signature(forward).parameters.values()][1:]


def plain(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of the module's own class."""
    return type(module).fused_from.forward(module, *args, **kwargs)  # type: ignore[attr-defined]


def refuse_head_dim(size: int) -> str | None:
    return None if 16 <= size <= 128 else f"the attention kernels take head dims from 16 to 128, this is {size}"


def refuse_dropout(*rates: float) -> str | None:
    return "dropout of attention weights is on, and the kernels never have them" if any(rates) else None


#: Activation modules by name; timm has its own beside torch's.
_ACTIVATIONS = {
    "Identity": "none", "ReLU": "relu", "ReLU6": "relu6", "SiLU": "silu", "Swish": "silu", "Hardswish": "hardswish",
    "HardSwish": "hardswish", "GELU": "gelu", "GELUTanh": "gelu_tanh", "GELUActivation": "gelu",
}  # fmt: skip
_KNOWN_LIBRARIES = ("torch.nn.", "timm.layers.", "transformers.activations")


def activation_name(module: nn.Module) -> str | None:
    """The activation that a module is, as `conv_norm_act` calls it; None when it is none of those."""
    kind = type(module)
    if not kind.__module__.startswith(_KNOWN_LIBRARIES):
        return None
    if kind is nn.GELU and module.approximate == "tanh":
        return "gelu_tanh"
    return _ACTIVATIONS.get(kind.__name__)


def norm_activation(norm: nn.Module) -> str | None:
    """What follows a batch norm inside one module (timm's BatchNormAct2d); None for any other kind of norm."""
    if type(norm) is nn.BatchNorm2d:
        return "none"
    if isinstance(norm, nn.BatchNorm2d) and type(norm).__name__ == "BatchNormAct2d":
        return activation_name(cast(nn.Module, norm.act)) if isinstance(norm.drop, nn.Identity) else None
    return None


def is_conv2d(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module computes what torch's Conv2d does; a subclass may only be built otherwise."""
    if not isinstance(module, nn.Conv2d) or parametrize.is_parametrized(module):
        return False
    return all(getattr(type(module), name) is getattr(nn.Conv2d, name) for name in ("forward", "_conv_forward"))


def grouped_by_channel(conv: Any) -> bool:
    return isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels == conv.out_channels > 1


def pads_as_tensorflow(conv: nn.Module) -> bool:
    """Whether it is timm's Conv2dSame, whose padding depends on the size of its input."""
    kind = parametrize.type_before_parametrizations(conv)
    return (kind.__module__, kind.__qualname__) == ("timm.layers.conv2d_same", "Conv2dSame")


def tensorflow_padding(x: Tensor, conv: nn.Conv2d) -> Grid | None:
    """What is padded before and after both axes of x, so that every pixel of each stride has an output; None where the
    axes differ.
    """
    (k, _), (stride, _) = conv.kernel_size, conv.stride
    both = {max((-(-size // stride) - 1) * stride + k - size, 0) for size in x.shape[-2:]}
    total = both.pop()
    return None if both else (total // 2, total - total // 2)


def refuse_pair(conv: nn.Module, norm: nn.Module, tensorflow: bool = False) -> str | None:
    """Why a convolution and the norm after it are not a depthwise one and a batch norm that the kernels know.

    Args:
        tensorflow: whether the convolution may pad as TensorFlow does.
    """
    known = is_conv2d(conv) or (tensorflow and pads_as_tensorflow(conv))
    if not is_depthwise(conv) or not known:
        return "its convolution is not a square, undilated, symmetrically padded depthwise one of 2 to 9"
    if norm_activation(norm) is None:
        return f"{type(norm).__name__} is not a batch norm with an activation that the kernels know"
    return None


def folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether `conv_norm_act` is these two: a plain convolution and a batch norm with a known activation."""
    plain_conv = is_conv2d(conv) and conv.padding_mode == "zeros"
    return plain_conv and norm_activation(norm) is not None


def conv_and_norm(x: Tensor, conv: nn.Module, norm: nn.Module, before: nn.Module | None = None) -> Tensor:
    """norm(conv(before(x))), fused where that is possible."""
    activation = norm_activation(norm)
    if is_depthwise(conv) and pads_as_tensorflow(conv) and activation is not None and before is None:
        padding = tensorflow_padding(x, cast(nn.Conv2d, conv))
        if padding is not None:
            return conv_norm_act(x, conv, norm, activation, padding=padding)  # type: ignore[arg-type]
    if not folds(conv, norm) or activation is None:
        return cast(Tensor, norm(conv(x if before is None else before(x))))
    if before is not None and norm_activation(before) != "none":
        x, before = before(x), None
    return conv_norm_act(x, conv, norm, activation, before=before)  # type: ignore[arg-type]


def split_heads(packed: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, 3 H D], all of q first, to q, k, v [B, H, N, D] without a copy."""
    q, k, v = (part.transpose(1, 2) for part in packed.unflatten(-1, (3, heads, -1)).unbind(2))
    return q, k, v


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, D] to [B, N, H D]."""
    return x.transpose(1, 2).flatten(2)


def table_attention(
    owner: nn.Module, q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: Grid, scale: float
) -> Tensor:
    """`relative_attention`, which keeps the expanded table for the next call where no gradients are wanted.

    It is kept by the module that owns the table: a parameter that others refer to weakly could not be swapped.
    """
    if wants_grad(q, k, v, table):
        return relative_attention(q, k, v, table, grid, scale)
    dtype = compute_dtype(q)
    expanded = derived(owner, "expanded", lambda t: expand_relative_bias(t, grid, dtype), table, key=(dtype, *grid))
    return relative_attention(q, k, v, table, grid, scale, expanded=expanded)


def table_bias(table: Tensor, grid: Grid) -> Tensor:
    """The table's dense bias [H, N, N], at least fp32 (in bf16 a mask of -100 would swallow it)."""
    h, w = grid
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    windows = wide.view(2 * h - 1, 2 * w - 1, -1).unfold(0, h, 1).unfold(1, w, 1)
    return windows.permute(2, 0, 1, 3, 4).flip(3, 4).reshape(-1, h * w, h * w)


def window_attention(
    owner: nn.Module, q: Tensor, k: Tensor, v: Tensor, table: Tensor, grid: Grid, mask: Tensor | None, scale: float
) -> Tensor:
    """Attention within windows with a table of relative positions, and with masks where the windows are shifted.

    Each window of an image has a mask of its own, the images share them: window and head together are the head of
    a dense bias. That costs one copy of q, k and v, and of the result.

    Args:
        q, k, v: [B * windows, H, N, D], the windows of an image together; N = h * w of the grid.
        table: [(2h-1)(2w-1), H]; mask: [windows, N, N], added to the scores, or None.

    Returns: [B * windows, N, H * D].
    """
    if mask is None:
        return merge_heads(table_attention(owner, q, k, v, table, grid, scale))

    def combine(table: Tensor, mask: Tensor) -> Tensor:
        return (table_bias(table, grid) + mask[:, None]).flatten(0, 1)

    return _masked_windows(q, k, v, derived(owner, "masked", combine, table, mask, key=grid), scale)


def dense_window_attention(
    owner: nn.Module, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """`window_attention` with a dense bias [H, N, N] that the windows share."""
    if mask is None:
        return merge_heads(bias_attention(q, k, v, bias, scale))

    def combine(bias: Tensor, mask: Tensor) -> Tensor:
        return (bias.to(torch.promote_types(bias.dtype, torch.float32)) + mask[:, None]).flatten(0, 1)

    return _masked_windows(q, k, v, derived(owner, "masked", combine, bias, mask), scale)


def _masked_windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Of [B * windows, H, N, D] with a bias [windows * H, N, N]; returns [B * windows, N, H * D]."""
    many, heads, n, d = q.shape
    windows = bias.shape[0] // heads

    def regroup(x: Tensor) -> Tensor:
        return x.reshape(many // windows, windows * heads, n, d)

    out = bias_attention(regroup(q), regroup(k), regroup(v), bias, scale)
    return out.unflatten(1, (windows, heads)).transpose(2, 3).reshape(many, n, heads * d)


def indexed_bias(owner: nn.Module, table: Tensor, index: Tensor) -> Tensor:
    """table[index] as a bias [1, H, N, N], kept by the module that owns the table.

    Args:
        table: [rows, H]; index: [N, N] or [N * N].
    """

    def look_up(table: Tensor, index: Tensor) -> Tensor:
        n = math.isqrt(index.numel())
        return table[index.flatten()].view(n, n, -1).permute(2, 0, 1).contiguous()[None]

    return cast(Tensor, derived(owner, "bias", look_up, table, index))


def dense_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention with a bias [1, H, N, M] shared by the batch; returns [B, N, H * D]."""
    return merge_heads(bias_attention(q, k, v, bias[0], scale))


def tokens(x: Tensor) -> Tensor:
    """Maps [B, C, h, w] as [B, N, C], without a copy where they are channels_last; tokens as they are."""
    return x.flatten(2).mT if x.ndim == 4 else x


def parts_of_heads(packed: Tensor, heads: int, *sizes: int) -> list[Tensor]:
    """Maps or tokens of heads * sum(sizes) channels, head by head, to [B, H, N, size] each."""
    split = tokens(packed).unflatten(-1, (heads, sum(sizes))).split(sizes, -1)
    return [part.transpose(1, 2) for part in split]


def refuse_offsets(m: Any) -> str | None:
    """Of attention with LeViT's biases."""
    return refuse_head_dim(m.val_dim) if m.key_dim <= m.val_dim else "its keys have more channels than its values"


def offset_bias(m: Any) -> Tensor:
    """LeViT's bias [H, N, M]: a number for each head and absolute offset."""
    return cast(
        Tensor,
        derived(m, "bias", lambda each, index: each[:, index], m.attention_biases, m.attention_bias_idxs),
    )


def widened_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`bias_attention` whose queries and keys may have fewer channels than the values: zeros are added.

    Returns: [B, N, H * D].
    """
    more = v.shape[-1] - q.shape[-1]
    if more:
        q, k = F.pad(q, (0, more)), F.pad(k, (0, more))
    return merge_heads(bias_attention(q, k, v, bias, scale))


def cosine_heads(q: Tensor, k: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    """q and k whose product is SwinV2's score: the cosine times exp(logit_scale), at most 100, of each head."""
    scale = logit_scale.clamp(max=math.log(100.0)).exp().view(-1, 1, 1)
    return (F.normalize(q, dim=-1) * scale).to(q.dtype), F.normalize(k, dim=-1).to(k.dtype)


def continuous_table(owner: nn.Module, network: nn.Module, coordinates: Tensor) -> Tensor:
    """SwinV2's table of relative positions [(2h-1)(2w-1), H]: 16 sigmoid(network(coordinates [1, 2h-1, 2w-1, 2]))."""

    def look(coordinates: Tensor, *_: Tensor) -> Tensor:
        return 16 * network(coordinates).flatten(0, -2).sigmoid()

    return cast(Tensor, derived(owner, "table", look, coordinates, *network.parameters()))
