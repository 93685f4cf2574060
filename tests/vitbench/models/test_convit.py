"""ConViT against the catalog, against timm, and in what only its gated attention does."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.vitbench.models.numberless import count, numberless, published, shapes
from vitbench.catalog import catalog
from vitbench.models import convit
from vitbench.ops.bundle import EAGER, Ops

SMALL = convit.ConViTConfig(heads=4, head_dim=8, gated_blocks=2, plain_blocks=1)


def reference(timm: ModuleType, config: convit.ConViTConfig, side: int, classes: int = 1000) -> nn.Module:
    model = timm.models.convit.ConVit(
        img_size=side,
        embed_dim=config.head_dim,
        num_heads=config.heads,
        depth=config.gated_blocks + config.plain_blocks,
        local_up_to_layer=config.gated_blocks,
        num_classes=classes,
    )
    assert isinstance(model, nn.Module)
    return model


def test_models_are_the_catalog_rows_in_order() -> None:
    rows = [entry for entry in catalog().values() if entry.family == "convit"]
    assert list(convit.MODELS) == [row.model for row in rows]
    assert all(convit.MODELS[row.model].resolution == row.resolution for row in rows)


@pytest.mark.parametrize("name", convit.MODELS)
def test_counts_are_the_catalogs_and_names_timms(name: str, timm: ModuleType) -> None:
    entry = catalog()[name]
    found, given = count(name)
    assert given == [(1, 1000)]
    assert found.params_m == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)
    with numberless():
        theirs = reference(timm, convit.CONFIGS[name], 224)
    assert shapes(published(name)) == shapes(theirs)


def twins(timm: ModuleType, config: convit.ConViTConfig, side: int) -> tuple[nn.Module, nn.Module, Tensor]:
    """Our model and timm's with equal weights, none of them 0 or 1, in fp64, and images."""
    torch.manual_seed(0)
    theirs = reference(timm, config, side, classes=10)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours = convit.ConViT(EAGER, config, (side, side), 10)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs, torch.randn(2, 3, side, side)


def test_equal_weights_give_timms_logits(timm: ModuleType) -> None:
    ours, theirs, image = twins(timm, convit.CONFIGS["convit_tiny"], 64)
    with torch.no_grad():
        actual, expected = ours.eval()(image), theirs.eval()(image)
    assert (actual - expected).norm() / expected.norm() < 1e-5


def test_equal_weights_give_timms_gradients(timm: ModuleType) -> None:
    ours, theirs, image = twins(timm, dataclasses.replace(SMALL, drop_path=0.0), 48)
    weights = torch.randn(2, 10, dtype=torch.float64)
    for model in (ours, theirs):
        (model.double().train()(image.double()) * weights).sum().backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        expected = parameter.grad
        assert expected is not None
        # What shifts every logit of a softmax alike (the bias of pos_proj) has a gradient of zero but for rounding.
        torch.testing.assert_close(gradients[name].grad, expected, rtol=1e-7, atol=1e-9)


def test_the_class_token_joins_after_the_gated_blocks() -> None:
    seen: list[tuple[str, int]] = []

    def spy(name: str, tokens: Tensor) -> None:
        seen.append((name, tokens.shape[2]))

    def gated(*args: Tensor) -> Tensor:
        spy("gated", args[0])
        return EAGER.gated_attention(*args)

    def plain(*args: Tensor) -> Tensor:
        spy("plain", args[0])
        return EAGER.attention(*args)

    ops: Ops = dataclasses.replace(EAGER, gated_attention=gated, attention=plain)
    config = dataclasses.replace(convit.CONFIGS["convit_tiny"], heads=1)
    convit.ConViT(ops, config, (32, 48), 10)(torch.randn(1, 3, 32, 48))
    assert seen == [("gated", 6)] * 10 + [("plain", 7)] * 2


def test_offsets_point_from_query_to_key_on_any_grid() -> None:
    offsets = convit.offsets((2, 3), torch.empty(0, dtype=torch.float64))
    assert offsets.dtype is torch.float64
    for i in range(6):
        for j in range(6):
            dx, dy = j % 3 - i % 3, j // 3 - i // 3
            assert offsets[i, j].tolist() == [dx, dy, dx * dx + dy * dy]


def test_it_starts_as_a_convolution() -> None:
    torch.manual_seed(0)
    model = convit.ConViT(EAGER, convit.ConViTConfig(9, 8, gated_blocks=1, plain_blocks=1), (80, 80), 10)
    block = model.blocks[0]
    assert isinstance(block, convit.Block)
    attention = block.attn
    assert isinstance(attention, convit.GatedAttention)
    assert torch.equal(attention.v.weight, torch.eye(72))
    assert torch.equal(attention.gating_param, torch.ones(9))
    positional = attention.pos_proj(convit.offsets((5, 5), model.pos_embed)).softmax(1)
    centre = 2 * 5 + 2
    looked_at = [(int(cell) // 5 - 2, int(cell) % 5 - 2) for cell in positional[centre].argmax(0)]
    assert looked_at == [(head % 3 - 1, head // 3 - 1) for head in range(9)]  # (rows down, columns right)
    assert attention.qk.weight.std().item() == pytest.approx(0.02, rel=0.05)
    even = convit.ConViT(EAGER, convit.ConViTConfig(4, 8), (32, 32), 10).blocks[0].attn.pos_proj.weight
    assert even.tolist() == [[-1, -1, -1], [-1, 1, -1], [1, -1, -1], [1, 1, -1]]


def test_heads_make_a_square_window() -> None:
    with pytest.raises(ValueError, match="6 heads make no square window; take 1, 4, 9 or 16"):
        convit.ConViT(EAGER, convit.ConViTConfig(6, 8), (32, 32), 10)


def test_positions_are_resampled_to_another_grid() -> None:
    source, target = (convit.ConViT(EAGER, SMALL, resolution, 10) for resolution in ((64, 64), (32, 96)))
    rows = torch.arange(4.0).repeat_interleave(4)
    state = {**source.state_dict(), "pos_embed": rows[None, :, None].expand(1, 16, 32)}
    resized = target.resize_state_dict(state)
    target.load_state_dict(resized, strict=True)
    table = resized["pos_embed"].view(2, 6, 32)
    assert torch.allclose(table, table[:, :1, :1].expand_as(table), atol=1e-5)
    assert 0 < table[0, 0, 0] < 1.5 < table[1, 0, 0] < 3
    with pytest.raises(ValueError, match="12 cells is not square"):
        source.resize_state_dict(target.state_dict())


@pytest.mark.parametrize("name", ["convit_tiny", "convit_small", "convit_base"])
def test_preprocessing_is_timms(name: str, timm: ModuleType) -> None:
    theirs, ours = timm.get_pretrained_cfg(name), convit.MODELS[name].preprocessing
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)
