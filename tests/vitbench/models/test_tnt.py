"""TNT against the catalog, against timm, and in how words and patches meet."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch
from torch import nn

from tests.vitbench.models.numberless import count, numberless, published, shapes
from vitbench.catalog import Resolution, catalog
from vitbench.models import tnt
from vitbench.ops.bundle import EAGER

SMALL = tnt.TNTConfig(width=24, heads=3, word_width=8, depth=2)
LEGACY = dataclasses.replace(SMALL, legacy=True)


def reference(timm: ModuleType, config: tnt.TNTConfig, resolution: Resolution, classes: int = 10) -> nn.Module:
    model = timm.models.tnt.TNT(
        img_size=resolution,
        embed_dim=config.width,
        inner_dim=config.word_width,
        depth=config.depth,
        num_heads_inner=config.word_heads,
        num_heads_outer=config.heads,
        legacy=config.legacy,
        num_classes=classes,
    )
    assert isinstance(model, nn.Module)
    return model


def test_models_are_the_catalog_rows_in_order() -> None:
    rows = [entry for entry in catalog().values() if entry.family == "tnt"]
    assert list(tnt.MODELS) == [row.model for row in rows]
    assert all(tnt.MODELS[row.model].resolution == row.resolution for row in rows)


@pytest.mark.parametrize("name", tnt.MODELS)
def test_counts_are_the_catalogs_and_names_timms(name: str, timm: ModuleType) -> None:
    entry = catalog()[name]
    found, given = count(name)
    assert given == [(1, 1000)]
    assert found.params_m == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)
    with numberless():
        theirs = timm.create_model(name, num_classes=1000)
    assert shapes(published(name)) == shapes(theirs)


@pytest.mark.parametrize("config", [SMALL, LEGACY], ids=["tnt", "legacy"])
def test_equal_weights_give_timms_logits_and_gradients(config: tnt.TNTConfig, timm: ModuleType) -> None:
    torch.manual_seed(0)
    theirs = reference(timm, config, (48, 64))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    ours = tnt.TNT(EAGER, dataclasses.replace(config, drop_path=0.0), (48, 64), 10)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image, weights = torch.randn(2, 3, 48, 64), torch.randn(2, 10, dtype=torch.float64)
    with torch.no_grad():
        actual, expected = ours.eval()(image), theirs.eval()(image)
    assert (actual - expected).norm() / expected.norm() < 1e-5
    for model in (ours, theirs):
        (model.double().train()(image.double()) * weights).sum().backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("config", "reached"), [(SMALL, [0]), (LEGACY, [0, 1, 3, 4])], ids=["tnt", "legacy"])
def test_words_see_beyond_their_patch_only_in_the_legacy_network(config: tnt.TNTConfig, reached: list[int]) -> None:
    torch.manual_seed(0)
    embed = tnt.WordEmbed(config)
    positions = torch.randn(1, 8, 4, 4)
    image = torch.randn(1, 3, 32, 48)
    changed = image.clone()
    changed[..., 15, 15] += 1  # the last pixel of the first of 2 x 3 patches
    words, other = embed(image, positions), embed(changed, positions)
    assert words.shape == (6, 16, 8)
    assert [patch for patch in range(6) if not torch.equal(words[patch], other[patch])] == reached


def test_every_patch_adds_the_same_word_positions() -> None:
    torch.manual_seed(0)
    embed = tnt.WordEmbed(SMALL)
    image, positions = torch.randn(1, 3, 32, 48), torch.randn(1, 8, 4, 4)
    added = embed(image, positions) - embed(image, torch.zeros(1, 8, 4, 4))
    torch.testing.assert_close(added, positions.flatten(2).transpose(1, 2).expand(6, -1, -1))


def test_dropped_branches_leave_the_words_way_into_their_patch() -> None:
    torch.manual_seed(0)
    block = tnt.Block(EAGER, SMALL, drop_path=1 - 1e-12).train()
    words, patches = torch.randn(12, 16, 8), torch.randn(2, 7, 24)
    new_words, new_patches = block(words, patches)
    assert torch.equal(new_words, words)
    assert torch.equal(new_patches[:, 0], patches[:, 0])
    sentences = torch.stack([block.norm2_proj(block.proj(block.norm1_proj(patch.flatten()))) for patch in words])
    torch.testing.assert_close(new_patches[:, 1:], patches[:, 1:] + sentences.view(2, 6, 24))


def test_the_unused_tensor_of_the_authors_is_left_out() -> None:
    with torch.device("meta"):
        model = tnt.MODELS["tnt_s_patch16_224"].build(EAGER, (224, 224), 1000)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 23_843_848 - 196 * 384


def test_norm_epsilons_and_initial_spread() -> None:
    torch.manual_seed(0)
    model = tnt.TNT(EAGER, tnt.TNTConfig(192, 3, 24, depth=1), (224, 224), 10)
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}
    for tensor in (model.patch_pos, model.pixel_pos, model.proj.weight, model.blocks[0].attn_out.qk.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.proj.bias.any()


@pytest.mark.parametrize(("old", "new"), [((224, 224), (160, 256)), ((48, 48), (224, 224)), ((48, 80), (48, 80))])
def test_weights_of_another_resolution_are_resampled_as_timm_does(
    old: Resolution, new: Resolution, timm: ModuleType
) -> None:
    torch.manual_seed(0)
    source, target = (tnt.TNT(EAGER, SMALL, resolution, 10) for resolution in (old, new))
    state = source.state_dict()
    resized = target.resize_state_dict(state)
    expected = timm.models.tnt.checkpoint_filter_fn(dict(state), reference(timm, SMALL, new))
    torch.testing.assert_close(resized["patch_pos"], expected["patch_pos"], rtol=0, atol=1e-6)
    assert all(resized[key] is tensor for key, tensor in state.items() if key != "patch_pos")
    target.load_state_dict(resized, strict=True)


def test_table_of_an_unknown_grid_is_refused() -> None:
    state = tnt.TNT(EAGER, SMALL, (48, 64), 10).state_dict()
    with pytest.raises(ValueError, match="12 cells is not square"):
        tnt.TNT(EAGER, SMALL, (64, 64), 10).resize_state_dict(state)


@pytest.mark.parametrize("name", tnt.MODELS)
def test_preprocessing_is_timms(name: str, timm: ModuleType) -> None:
    theirs, ours = timm.get_pretrained_cfg(name), tnt.MODELS[name].preprocessing
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)
