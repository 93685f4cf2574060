"""CoAtNet in all its variants against the catalog and against timm; its tables of relative positions."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.vitbench.models.numberless import count, numberless, published, shapes
from vitbench.catalog import Resolution, catalog
from vitbench.models import coatnet, coatnet_blocks
from vitbench.ops.bundle import EAGER

ROWS = [entry for entry in catalog().values() if entry.family in ("coatnet", "coatnet_timm", "coatnet_ablation")]
SIZES: dict[str, Any] = {"widths": (32, 64, 64, 96), "depths": (1, 2, 2, 1), "stem": (16, 32)}
TIMM_SIZES: dict[str, Any] = {"embed_dim": (32, 64, 64, 96), "depths": (1, 2, 2, 1), "stem_width": (16, 32)}
PAPER: dict[str, Any] = {"conv_stride_mode": "1x1", "conv_pool_type": "max2", "transformer_pool_type": "max2"}

# Ours: (timm's name, what turns it into ours).
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "coatnet_0": ("coatnet_0_224", PAPER),
    "coatnet_0_cccc": ("coatnet_0_224", PAPER | {"block_type": ("C", "C", "C", "C")}),
    "coatnet_0_ccct": ("coatnet_0_224", PAPER | {"block_type": ("C", "C", "C", "T")}),
    "coatnet_0_cttt": ("coatnet_0_224", PAPER | {"block_type": ("C", "T", "T", "T")}),
    "coatnet_0_dwstride": ("coatnet_0_224", {}),
    "coatnet_0_rw_224": ("coatnet_0_rw_224", {}),
    "coatnet_1_rw_224": ("coatnet_1_rw_224", {}),
    "coatnet_2_rw_224": ("coatnet_2_rw_224", {}),
    "coatnet_3_rw_224": ("coatnet_3_rw_224", {}),
}


def small(name: str, resolution: Resolution = (64, 96), **changes: Any) -> coatnet.CoAtNet:
    config = dataclasses.replace(coatnet.CONFIGS[name], **{**SIZES, "drop_path": 0.0, **changes})
    torch.manual_seed(0)
    return coatnet.CoAtNet(EAGER, config, resolution, 10)


def randomise(model: nn.Module) -> None:
    """Moves every parameter and statistic away from 0 and 1, so that none can stand for another."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.1)


def test_models_are_the_catalog_rows_in_order() -> None:
    assert list(coatnet.MODELS) == [row.model for row in ROWS]
    assert all(coatnet.MODELS[row.model].resolution == row.resolution for row in ROWS)
    assert all(row.resolution_multiple == coatnet.CONFIGS[row.model].stride for row in ROWS)


@pytest.mark.parametrize("name", coatnet.MODELS)
def test_parameters_and_macs_are_the_catalogs(name: str) -> None:
    entry, spec = catalog()[name], coatnet.MODELS[name]
    found, given = count(name)
    assert given == [(1, spec.num_classes)]
    assert found.params_m == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "params_m", "gmacs"),
    [
        ("coatnet_0_cccc", 20.94, 3.17),
        ("coatnet_0_ccct", 23.53, 3.42),
        ("coatnet_0_cctt", 25.04, 4.14),
        ("coatnet_0_cttt", 25.30, 5.20),
        ("coatnet_2_cccc", 62.75, 11.67),
        ("coatnet_2_ccct", 67.38, 12.11),
        ("coatnet_2_cctt", 74.68, 15.50),
        ("coatnet_2_cttt", 75.58, 18.61),
    ],
)
def test_swapped_layouts_count_as_another_count_of_them_did(name: str, params_m: float, gmacs: float) -> None:
    entry = catalog()[name]
    assert entry.params_m == pytest.approx(params_m, abs=0.006)
    assert entry.gmacs == pytest.approx(gmacs, abs=0.006)
    assert "not size-matched" in entry.source


def test_the_layout_of_the_paper_is_the_paper_network() -> None:
    for name in ("coatnet_0", "coatnet_2"):
        assert coatnet.CONFIGS[f"{name}_cctt"] == coatnet.CONFIGS[name]


@pytest.mark.parametrize("name", [name for name in coatnet.MODELS if name.endswith(("_dwstride", "_rw_224"))])
def test_state_dict_has_timms_names_and_shapes(name: str, timm: ModuleType) -> None:
    classes = coatnet.MODELS[name].num_classes
    with numberless():
        theirs = timm.create_model(name.replace("_dwstride", "_224"), num_classes=classes)
    assert shapes(published(name)) == shapes(theirs)
    if name.endswith("_dwstride"):
        assert shapes(published(name.removesuffix("_dwstride"))) == shapes(theirs)


def twins(timm: ModuleType, name: str, resolution: Resolution) -> tuple[nn.Module, nn.Module, Tensor]:
    """Our model and timm's at small sizes with equal weights, and images."""
    ours = small(name, resolution)
    theirs_name, changes = TIMM[name]
    if not name.endswith("_rw_224"):
        changes = changes | {"head_hidden_size": 96}
    theirs = timm.create_model(theirs_name, img_size=resolution, num_classes=10, **TIMM_SIZES, **changes)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs, torch.randn(2, 3, *resolution)


@pytest.mark.parametrize("name", TIMM)
def test_equal_weights_give_timms_logits(name: str, timm: ModuleType) -> None:
    ours, theirs, image = twins(timm, name, (64, 96))
    with torch.no_grad():
        actual, expected = ours.eval()(image), theirs.eval()(image)
    assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("name", ["coatnet_0", "coatnet_0_rw_224"])
def test_equal_weights_give_timms_gradients(name: str, timm: ModuleType) -> None:
    ours, theirs, image = twins(timm, name, (64, 64))
    weights = torch.randn(2, 10, dtype=torch.float64)
    for model in (ours, theirs):
        (model.double().train()(image.double()) * weights).sum().backward()
    gradients = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[key].grad, parameter.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["coatnet_0", "coatnet_0_vit_rel"])
def test_only_the_tables_know_where_a_token_is(name: str) -> None:
    """Attention blocks turned by half a turn, with their tables, give the same turned by half a turn."""
    torch.manual_seed(0)
    config = coatnet.CONFIGS[name].transformer
    blocks = nn.Sequential(
        *(coatnet_blocks.Transformer(EAGER, config, 64, 64, (4, 6), False, 0.0) for _ in range(2))
    ).eval()
    randomise(blocks)
    x = torch.randn(1, 64, 4, 6)
    expected = blocks(x)
    state = blocks.state_dict()
    turned = {k: t.flip(0) if k.endswith("bias_table") else t for k, t in state.items()}
    assert not torch.allclose(blocks(x.flip(2, 3)).flip(2, 3), expected, rtol=1e-3)
    blocks.load_state_dict(turned)
    torch.testing.assert_close(blocks(x.flip(2, 3)).flip(2, 3), expected)


def test_vit_rel_keeps_the_grid_of_its_patches_and_has_no_positions() -> None:
    model = small("coatnet_0_vit_rel", widths=(64,), depths=(3,), stem=None)
    randomise(model)
    model.eval()
    shapes: list[torch.Size] = []
    for block in model.stages[0].blocks:
        block.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    image = torch.randn(2, 3, 64, 96)
    logits = model(image)
    assert shapes == [(2, 64, 4, 6)] * 3
    for name, parameter in model.named_parameters():
        if name.endswith("bias_table"):
            parameter.data.zero_()
    order = torch.randperm(24)
    patches = image.unflatten(3, (6, 16)).unflatten(2, (4, 16)).transpose(3, 4).flatten(2, 3)[:, :, order]
    shuffled = patches.unflatten(2, (4, 6)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    assert not torch.allclose(model(image), logits, rtol=1e-3)  # the tables mattered
    torch.testing.assert_close(model(shuffled), model(image))


def test_the_pooled_branch_is_normalised_first_in_the_paper() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 4, 4)
    for first in (True, False):
        config = coatnet_blocks.TransformerConfig(norm_before_pool=first)
        norm = coatnet_blocks.PooledNorm(config, 8)
        pooled = nn.functional.max_pool2d(norm.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 2)
        other = norm.norm(nn.functional.max_pool2d(x, 2).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(norm(x), (pooled if first else other).flatten(2).transpose(1, 2))
        assert not torch.allclose(pooled, other)


def test_tables_are_resampled_bilinearly_over_offsets() -> None:
    """A bias that is linear in the offset stays so, stretched as the number of offsets is."""
    source, target = small("coatnet_0", (224, 224)), small("coatnet_0", (384, 448))
    state = source.state_dict()
    keys = [key for key in state if key.endswith("bias_table")]
    assert len(keys) == 3
    for key in keys:
        side = int(len(state[key]) ** 0.5)
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        state[key] = (y + 100.0 * x).flatten()[:, None].expand(-1, state[key].shape[1])
    resized = target.resize_state_dict(state)
    target.load_state_dict(resized, strict=True)
    table = resized["stages.2.blocks.0.attn.rel_pos.relative_position_bias_table"].view(47, 55, -1)[5:-5, 5:-5]
    down, right = table.diff(dim=0), table.diff(dim=1)
    torch.testing.assert_close(down, torch.full_like(down, 27 / 47), rtol=1e-2, atol=0)
    torch.testing.assert_close(right, torch.full_like(right, 2700 / 55), rtol=1e-3, atol=0)
    assert all(resized[key] is tensor for key, tensor in state.items() if key not in keys)


def test_tables_that_fit_stay_and_unknown_grids_are_refused() -> None:
    wide = small("coatnet_0", (64, 96)).state_dict()
    assert all(torch.equal(t, wide[k]) for k, t in small("coatnet_0", (64, 96)).resize_state_dict(wide).items())
    with pytest.raises(ValueError, match="77 cells is not square"):
        small("coatnet_0", (64, 64)).resize_state_dict(wide)


def test_initialisation_is_timms() -> None:
    model = small("coatnet_3_rw_224", widths=(64, 128, 128, 128))
    state = model.state_dict()
    std = {
        "stem.conv2.weight": (2 / (9 * 32)) ** 0.5,
        "stages.1.blocks.1.conv2_kxk.weight": (2 / 9) ** 0.5,
        "stages.1.blocks.1.conv1_1x1.weight": (2 / 512) ** 0.5,
        "stages.2.blocks.1.attn.qkv.weight": (2 / (128 + 384)) ** 0.5,
        "stages.2.blocks.1.attn.rel_pos.relative_position_bias_table": 0.02,
    }
    for key, expected in std.items():
        assert state[key].std().item() == pytest.approx(expected, rel=0.06), key
    assert torch.equal(state["stages.3.blocks.0.ls1.gamma"], torch.full((128,), 1e-6))
    assert not state["stages.2.blocks.1.attn.qkv.bias"].any()


@pytest.mark.parametrize("name", [name for name in coatnet.MODELS if name.endswith("_rw_224")])
def test_preprocessing_is_timms(name: str, timm: ModuleType) -> None:
    theirs, ours = timm.get_pretrained_cfg(name), coatnet.MODELS[name].preprocessing
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)
    assert coatnet.MODELS[name].num_classes == theirs.num_classes
