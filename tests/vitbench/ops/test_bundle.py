"""Every implementation of every operation against its formula in fp64, and what each refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from vitbench.errors import Unsupported
from vitbench.ops import bundle as ops
from vitbench.ops.bundle import EAGER, FLEX, SDPA, Ops
from vitbench.ops.implementations import ops_for

B, H, GRID, D = 2, 4, (4, 4), 8
N = GRID[0] * GRID[1]
ALL = [EAGER, SDPA, FLEX]
FLOOR = 1e-5


def packed(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as CoAtNet gives them: strided views of one projection, head by head."""
    torch.manual_seed(0)
    q, k, v = (part.transpose(1, 2) for part in torch.randn(B, N, H, 3, D).to(dtype).unbind(3))
    return q, k, v


def index(grid: tuple[int, int]) -> Tensor:
    """Row of the table for every query and key, as the definition has it."""
    h, w = grid
    rows = torch.empty(h * w, h * w, dtype=torch.long)
    for i in range(h * w):
        for j in range(h * w):
            rows[i, j] = (i // w - j // w + h - 1) * (2 * w - 1) + (i % w - j % w + w - 1)
    return rows


def table_of(grid: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn((2 * grid[0] - 1) * (2 * grid[1] - 1), H).to(dtype)


def probabilities(q: Tensor, k: Tensor, bias: Tensor | float = 0.0, scale: float = D**-0.5) -> Tensor:
    return (torch.einsum("bhnd,bhmd->bhnm", q.double(), k.double()) * scale + bias).softmax(-1)


def error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """FlexAttention traced as ever and computed without C++, of which each new score takes a core 7 s.

    That what torch generates is right, the tests of relative attention and of a bias for each image show.
    """
    flex = torch.compile(flex_attention, dynamic=False, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr(ops, "_compiled_flex", lambda: flex)
    return monkeypatch


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 2), (7, 7)])
def test_relative_bias_is_the_tables_row_of_each_offset(grid: tuple[int, int]) -> None:
    table = table_of(grid).requires_grad_()
    bias = ops.relative_bias(table, grid)
    expected = table.detach()[index(grid)].permute(2, 0, 1)
    assert torch.equal(bias, expected)
    assert bias.is_contiguous()
    weights = torch.randn_like(bias)
    (gradient,) = torch.autograd.grad((bias * weights).sum(), table)
    by_offset = torch.zeros_like(table).index_add_(0, index(grid).flatten(), weights.flatten(1).T)
    torch.testing.assert_close(gradient, by_offset)


@pytest.mark.parametrize("bundle", ALL, ids=lambda bundle: bundle.name)
@torch.inference_mode()
def test_relative_attention_is_its_formula(bundle: Ops) -> None:
    q, k, v = packed()
    table = table_of(GRID)
    bias = table.double()[index(GRID)].permute(2, 0, 1)
    expected = probabilities(q, k, bias) @ v.double()
    assert error(bundle.relative_attention(q, k, v, table, GRID), expected) < FLOOR
    assert error(expected, probabilities(q, k) @ v.double()) > 0.1  # the bias matters


@pytest.mark.parametrize("bundle", ALL, ids=lambda bundle: bundle.name)
@torch.inference_mode()
def test_attention_takes_a_bias_for_all_images_or_for_each(bundle: Ops, traced: pytest.MonkeyPatch) -> None:
    q, k, v = packed()
    for bias in (torch.randn(H, N, N), torch.randn(1, H, N, N)):
        expected = probabilities(q, k, bias.double()) @ v.double()
        assert error(bundle.attention(q, k, v, bias), expected) < FLOOR
    traced.undo()
    bias = torch.randn(B, 1, 1, N)
    expected = probabilities(q, k, bias.double(), scale=0.7) @ v.double()
    assert error(bundle.attention(q, k, v, bias, scale=0.7), expected) < FLOOR


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("bundle", ALL, ids=lambda bundle: bundle.name)
@torch.inference_mode()
def test_gated_attention_mixes_two_softmaxes(bundle: Ops) -> None:
    q, k, v = packed()
    positional, gate = torch.randn(H, N, N), torch.tensor([-30.0, -1.0, 2.0, 30.0])
    share = gate.double().sigmoid()[:, None, None]
    mixed = (1 - share) * probabilities(q, k) + share * positional.double().softmax(-1)
    torch.testing.assert_close(mixed.sum(-1), torch.ones_like(mixed[..., 0]))  # why nothing renormalises
    actual = bundle.gated_attention(q, k, v, positional, gate)
    assert error(actual, mixed @ v.double()) < FLOOR
    torch.testing.assert_close(actual[:, 0], bundle.attention(q, k, v)[:, 0])
    by_position = positional[3].softmax(-1) @ v[:, 3]
    torch.testing.assert_close(actual[:, 3], by_position)


@pytest.mark.parametrize("bundle", ALL, ids=lambda bundle: bundle.name)
@torch.inference_mode()
def test_low_precision_costs_no_more_than_twice_what_it_costs_eager(bundle: Ops) -> None:
    given = (*packed(torch.bfloat16), table_of(GRID, torch.bfloat16))
    exact = EAGER.relative_attention(*(t.double() for t in given), GRID)
    own = error(EAGER.relative_attention(*given, GRID), exact)
    actual = bundle.relative_attention(*given, GRID)
    assert actual.dtype is torch.bfloat16
    assert error(actual, exact) <= 2 * own


@torch.inference_mode()
def test_two_products_cost_gated_attention_no_precision() -> None:
    given = (*packed(torch.bfloat16), torch.randn(H, N, N).bfloat16(), torch.randn(H).bfloat16())
    exact = EAGER.gated_attention(*(t.double() for t in given))
    own = error(EAGER.gated_attention(*given), exact)
    actual = SDPA.gated_attention(*given)
    assert actual.dtype is torch.bfloat16
    assert error(actual, exact) <= 2 * own


@pytest.mark.parametrize("bundle", [EAGER, SDPA], ids=lambda bundle: bundle.name)
def test_every_input_gets_its_gradient(bundle: Ops) -> None:
    def leaves() -> list[Tensor]:
        torch.manual_seed(0)
        shapes = [(1, H, 6, D)] * 3 + [((2 * 2 - 1) * (2 * 3 - 1), H), (H, 6, 6), (H,)]
        return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    q, k, v, table, positional, gate = leaves()
    assert torch.autograd.gradcheck(lambda *args: bundle.relative_attention(*args, (2, 3)), (q, k, v, table))
    assert torch.autograd.gradcheck(bundle.gated_attention, (q, k, v, positional, gate))


def test_what_does_not_fit_the_grid_is_named() -> None:
    q, k, v = packed()
    for bundle in ALL:
        with pytest.raises(ValueError, match=r"\[35, 4\] does not fit a grid of 4 x 4, which has 49 offsets"):
            bundle.relative_attention(q, k, v, torch.zeros(35, H), GRID)
        with pytest.raises(ValueError, match=r"\[2, 4, 16, 8\] does not have the tokens of a grid of 3 x 4"):
            bundle.relative_attention(q, k, v, torch.zeros(35, H), (3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_seeds_drop_equal_probabilities(dtype: torch.dtype) -> None:
    q, k, v = (t.requires_grad_() for t in packed(dtype))
    weights = torch.randn(B, H, N, D, dtype=dtype)
    outputs, gradients = [], []
    for bundle in (EAGER, SDPA):
        torch.manual_seed(2)
        outputs.append(bundle.attention(q, k, v, torch.zeros(H, N, N, dtype=dtype), dropout=0.3))
        gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), (q, k, v)))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert error(outputs[0], EAGER.attention(q, k, v)) > 0.1


def test_dropped_probabilities_leave_the_mean() -> None:
    q, k, _ = packed()
    torch.manual_seed(2)
    identity = torch.eye(N).expand(B, H, N, N)
    kept = EAGER.attention(q, k, identity, dropout=0.25)
    whole = EAGER.attention(q, k, identity)
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(kept[kept != 0], whole[kept != 0] / 0.75)


def test_flex_refuses_dropout() -> None:
    q, k, v = packed()
    with torch.no_grad(), pytest.raises(Unsupported, match="drops no attention probabilities"):
        FLEX.attention(q, k, v, dropout=0.1)


def test_flex_refuses_to_train_on_the_cpu() -> None:
    q, k, v = packed()
    reason = "no backward pass on the CPU: train with eager or sdpa"
    with pytest.raises(Unsupported, match=reason):
        FLEX.attention(q.clone().requires_grad_(), k, v)
    with pytest.raises(Unsupported, match=reason):
        FLEX.relative_attention(q, k, v, table_of(GRID).requires_grad_(), GRID)


def test_flex_without_data_says_what_it_would_allocate() -> None:
    with FakeTensorMode():
        q, k, v = (torch.empty(B, N, H, D, requires_grad=True).transpose(1, 2) for _ in range(3))
        table = torch.empty(49, H, requires_grad=True)
        out = FLEX.relative_attention(q, k, v, table, GRID)
        assert (out.shape, out.stride()) == ((B, H, N, D), (N * H * D, D, H * D, 1))
        out.sum().backward()
        assert table.grad is not None
    with torch.device("meta"), torch.no_grad():
        q = torch.empty(B, H, N, D)
        assert FLEX.gated_attention(q, q, q, torch.empty(H, N, N), torch.empty(H)).shape == q.shape


def test_many_shapes_compile_in_one_process() -> None:
    ops._compiled_flex()
    assert torch._dynamo.config.recompile_limit >= 256


def test_names_lead_to_their_bundles() -> None:
    assert [ops_for(name) for name in ("eager", "sdpa", "flex", "compile")] == [EAGER, SDPA, FLEX, EAGER]
    assert [bundle.name for bundle in ALL] == ["eager", "sdpa", "flex"]


@pytest.mark.parametrize("bias", [None, torch.randn(H, N, N), torch.randn(1, H, N, N), torch.randn(N, N)])
def test_sdpa_gets_a_mask_of_a_shape_that_every_backend_takes(
    bias: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN refuses [H, N, M]: check_attn_mask_shape in torch's sdp_utils_cpp.h."""
    masks: list[Tensor | None] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, **how: float) -> Tensor:
        masks.append(attn_mask)
        return real(q, k, v, attn_mask=attn_mask, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    got = ops.sdpa_attention(*packed(), bias)
    torch.testing.assert_close(got, ops.eager_attention(*packed(), bias))
    (mask,) = masks
    assert (bias is None and mask is None) or (mask is not None and mask.ndim in (2, 4))
    assert mask is None or bias is None or mask.data_ptr() == bias.data_ptr(), "a view, not a copy"
