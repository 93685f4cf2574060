"""The operations under autograd beyond one plain backward pass: second derivatives, forward mode, torch.func."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from vitkernels import bias_attention, depthwise_conv2d, gated_attention, relative_attention
from vitkernels.depthwise.conv import depthwise_conv2d_stats
from vitkernels.reduced.attention import ReducedAttentionWeights, reduced_attention

GRID = (2, 4)
N = GRID[0] * GRID[1]


def reduced(x: Tensor, bias: Tensor, weight: Tensor, taps: Tensor, vector: Tensor, *, training: bool = False) -> Tensor:
    """Every parameter of one kind is the same tensor."""
    pair = (weight, vector)
    norm = {"bn_weight": vector, "bn_bias": vector, "bn_mean": vector.detach().clone(), "bn_var": vector.detach() ** 2}
    weights = ReducedAttentionWeights(vector, vector, *pair, *pair, *pair, *pair, taps, vector, **norm)
    return reduced_attention(x, bias, weights, GRID, 1, training=training)


def trained(x: Tensor, *rest: Tensor) -> Tensor:
    return reduced(x, *rest, training=True)


def sums(x: Tensor, weight: Tensor) -> Tensor:
    """The sums for a batch norm alone, with the result they belong to thrown away."""
    return depthwise_conv2d_stats(x, weight, activation="gelu")[1]


TOKENS = [(2, 1, N, 16)] * 3
OPS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "bias": (bias_attention, [*TOKENS, (1, N, N)]),
    "relative": (lambda *x: relative_attention(*x, GRID), [*TOKENS, (21, 1)]),
    "gated": (gated_attention, [*TOKENS, (1, N, N), (1,)]),
    "depthwise": (depthwise_conv2d, [(2, 4, 5, 5), (4, 1, 3, 3), (4,)]),
    "sums": (sums, [(2, 4, 5, 5), (4, 1, 3, 3)]),
    "reduced": (reduced, [(2, N, 16), (1, N, 2), (16, 16), (16, 1, 2, 2), (16,)]),
}


@pytest.fixture(params=list(OPS))
def problem(request: pytest.FixtureRequest, device: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    op, shapes = OPS[request.param]
    torch.manual_seed(0)
    return op, [torch.randn(shape, device=device) for shape in shapes]


Problem = tuple[Callable[..., Tensor], list[Tensor]]


@pytest.mark.parametrize("linear", [True, False])
def test_a_second_derivative_is_an_error(problem: Problem, linear: bool) -> None:
    """Also where the gradient that comes in is a constant, so that only saved tensors depend on the inputs."""
    op, tensors = problem
    leaves = [x.requires_grad_() for x in tensors]
    out = op(*leaves)
    first = torch.autograd.grad(out.sum() if linear else out.square().sum(), leaves, create_graph=True)
    penalised = op(*leaves).sum() + sum(x.square().sum() for x in first)
    with pytest.raises(RuntimeError, match="no second derivative"):
        penalised.backward()


def test_a_graph_of_the_gradients_leaves_them_as_they_are(problem: Problem) -> None:
    op, tensors = problem
    leaves = [x.requires_grad_() for x in tensors]
    for got, want in zip(
        torch.autograd.grad(op(*leaves).sum(), leaves, create_graph=True),
        torch.autograd.grad(op(*leaves).sum(), leaves),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_torch_func_grad(problem: Problem) -> None:
    op, tensors = problem
    got = torch.func.grad(lambda *x: op(*x).sum(), argnums=tuple(range(len(tensors))))(*tensors)
    leaves = [x.requires_grad_() for x in tensors]
    for ours, want in zip(got, torch.autograd.grad(op(*leaves).sum(), leaves), strict=True):
        assert torch.equal(ours, want)


def test_forward_mode_is_an_error(problem: Problem) -> None:
    op, tensors = problem
    # Torch raises this of a Function without jvp.
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(op, tuple(tensors), tuple(tensors))
    with torch.no_grad(), forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        op(forward_ad.make_dual(tensors[0], tensors[0]), *tensors[1:])


REPEATS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "bias": (lambda x, bias: bias_attention(x, x, x, bias), [TOKENS[0], (1, N, N)]),
    "relative": (lambda x, y, table: relative_attention(x, y, y, table, GRID), [*TOKENS[:2], (21, 1)]),
    "gated": (lambda x, y, bias, gate: gated_attention(x, y, x, bias, gate), [*TOKENS[:2], (1, N, N), (1,)]),
    "depthwise": (lambda x, w, b: depthwise_conv2d(x, w, b, scale=b, shift=b), [(2, 4, 5, 5), (4, 1, 3, 3), (4,)]),
    "reduced": OPS["reduced"],
}


@pytest.mark.parametrize("name", REPEATS)
def test_compile_fullgraph_where_a_tensor_is_given_twice(name: str, device: str) -> None:
    op, shapes = REPEATS[name]
    torch.manual_seed(0)
    leaves = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        torch.autograd.grad(compiled(*leaves).square().sum(), leaves),
        torch.autograd.grad(op(*leaves).square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


EMPTY: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    **OPS,
    "trained": (trained, OPS["reduced"][1]),
    "strided": (lambda *x: depthwise_conv2d(*x, stride=2, activation="gelu"), OPS["depthwise"][1]),
    "long-keys": (bias_attention, [(2, 1, 20, 16), *[(2, 1, 300, 16)] * 2, (1, 20, 300)]),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", EMPTY)
def test_empty_batch(name: str, dtype: torch.dtype, device: str) -> None:
    """An empty result with and without gradients; zero for what the images share."""
    op, shapes = EMPTY[name]
    batched = 3 if name in ("bias", "relative", "gated", "long-keys") else 1
    whole = op(*(torch.ones(shape, device=device, dtype=dtype) for shape in shapes))
    leaves = [
        torch.ones((0, *shape[1:]) if index < batched else shape, device=device, dtype=dtype, requires_grad=True)
        for index, shape in enumerate(shapes)
    ]
    out = op(*leaves)
    assert out.shape == (whole.shape if name == "sums" else (0, *whole.shape[1:]))
    with torch.no_grad():
        assert op(*leaves).shape == out.shape
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert grad.shape == leaf.shape
        assert not grad.any()
