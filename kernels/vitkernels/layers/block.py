"""CMT's attention sub-block from its modules: where the whole block fits on chip, in two kernels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitkernels.layers.derived import derived, is_frozen, wants_grad
from vitkernels.layers.folding import affine, batches_seen, compute_dtype, norm_state
from vitkernels.reduced.operators import block_op, block_serves, expand_block_bias
from vitkernels.runtime.device import kernels_run_on


def reduced_block_serves(x: Tensor, bias: Tensor, heads: int, modules: tuple[nn.Module | None, ...]) -> bool:
    """Whether `reduced_block` computes this: evaluation without gradients, at shapes whose weights fit on chip."""
    # By attribute: replicas of nn.DataParallel have no parameters().
    parameters: list[Any] = [t for m in modules if m is not None for t in (m.weight, m.bias)]
    if any(m is not None and m.training for m in modules):
        return False
    if wants_grad(x, bias, *parameters):
        return False
    return block_serves(x, compute_dtype(x), heads, bias.shape[2])


def reduced_block(
    x: Tensor,
    bias: Tensor,
    grid: tuple[int, int],
    heads: int,
    norm: nn.LayerNorm,
    q: nn.Linear,
    k: nn.Linear,
    v: nn.Linear,
    proj: nn.Linear,
    reduction: tuple[nn.Conv2d, nn.BatchNorm2d] | None,
) -> Tensor:
    """x + proj(attention(q(norm(x)), k(r), v(r)) with bias), r the reduced norm(x), in two kernels: no [N, C] between.

    Args:
        x: [B, N, C] tokens by rows of grid (h, w); bias: [heads, N, M].
        reduction: the k x k stride k depthwise convolution and its batch norm, or None.
    """
    dtype = compute_dtype(x)

    def cast(module: nn.Module, name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.dtype == dtype:
            return tensor
        made: Tensor = derived(module, f"cast {name}", lambda t: t.to(dtype), tensor, key=(dtype,))
        return made

    linear: list[Any] = []
    for layer in (q, k, v, proj):
        linear += [cast(layer, "weight", layer.weight), layer.bias]
    taps, scale, shift = None, None, None
    if reduction is not None:
        conv, batch_norm = reduction
        taps = cast(conv, "weight", conv.weight)

        def make(offset: Tensor | None, *state: Tensor | None) -> tuple[Tensor, Tensor]:
            scale, shift = affine(state, batch_norm.eps)
            return scale, shift if offset is None else shift + offset.to(scale.dtype) * scale

        scale, shift = derived(
            conv,
            "reduction",
            make,
            conv.bias,
            *norm_state(batch_norm),
            key=(batch_norm.eps,),
            watch=batches_seen(batch_norm),
        )
    expanded = kernels_run_on(x) and is_frozen(bias)
    if expanded:
        bias = derived(bias, "block", lambda t: expand_block_bias(t, dtype), bias, key=(dtype,))
    out: Tensor = block_op(
        x.to(dtype), bias, norm.weight, norm.bias, *linear, taps, scale, shift, grid[1], heads, norm.eps,
        (x.shape[2] // heads) ** -0.5, expanded,
    )  # fmt: skip
    return out
