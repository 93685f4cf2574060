"""Shapes, dtypes and layouts of the arguments of attention, on the host."""

from __future__ import annotations

import torch
from torch import Tensor

from vitkernels.runtime.call import SHORT_TYPES
from vitkernels.runtime.device import kernels_run_on

Shape = tuple[int, int, int, int]


def last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def token_major(like: Tensor, n: int, dtype: torch.dtype | None = None) -> Tensor:
    """Empty [B, H, n, D] laid out as (B, n, H, D), for like of [B, H, ., D]."""
    b, h, _, d = like.shape
    return like.new_empty((b, n, h, d), dtype=dtype or like.dtype).transpose(1, 2)


def check_qkv(op: str, q: Tensor, k: Tensor, v: Tensor, **others: Tensor) -> None:
    """ValueError unless q is [B, H, N, D], k and v [B, H, M, D], of one supported dtype, all on one device."""
    if q.dim() != 4 or k.shape != v.shape or k.dim() != 4 or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise ValueError(
            f"{op}: q must be [B, H, N, D] and k, v [B, H, M, D]; "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if not (1 <= q.shape[2] <= 16384 and 1 <= k.shape[2] <= 16384 and 16 <= q.shape[3] <= 128):
        raise ValueError(
            f"{op}: N and M must be 1 to 16384 and D 16 to 128; got q {tuple(q.shape)}, k {tuple(k.shape)}"
        )
    if not (q.dtype == k.dtype == v.dtype) or q.dtype not in (*SHORT_TYPES, torch.float64):
        raise ValueError(
            f"{op}: q, k, v must share one of float16, bfloat16, float32; got q {q.dtype}, k {k.dtype}, v {v.dtype}"
        )
    if q.dtype == torch.float64 and kernels_run_on(q):
        raise ValueError(f"{op}: the kernels take float16, bfloat16 or float32; got {q.dtype}")
    for name, tensor in {"k": k, "v": v, **others}.items():
        if tensor.device != q.device:
            raise ValueError(f"{op}: {name} is on {tensor.device} but q is on {q.device}")
        if not tensor.is_floating_point():
            raise ValueError(f"{op}: {name} must be of a floating dtype like q's {q.dtype}; got {tensor.dtype}")


def check_shape(op: str, name: str, tensor: Tensor, want: tuple[int, ...], q: Tensor) -> None:
    if tuple(tensor.shape) != want:
        raise ValueError(f"{op}: {name} must be {want} for q {tuple(q.shape)}; got {tuple(tensor.shape)}")


def softmax_gradient(softmax: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the scores behind a softmax, from the gradient of that softmax, in plain PyTorch.

    Written out, as autograd is out of reach inside an operator that a TorchDispatchMode watches.
    """
    return softmax * (grad - (softmax * grad).sum(-1, keepdim=True))
