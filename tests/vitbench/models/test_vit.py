"""ViT, its hybrids and DeiT against the catalog, against timm, and in every way the harness runs them."""

from __future__ import annotations

import copy
import dataclasses
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.vitbench.models.numberless import count, numberless, published, shapes
from vitbench.catalog import Resolution, catalog
from vitbench.models import vit
from vitbench.models.drop_path import DropPath
from vitbench.ops.bundle import EAGER, SDPA, Ops

# (small configuration, resolution): plain, distilled, root-only hybrid, hybrid whose odd image needs uneven padding.
SMALL = {
    "plain": (vit.ViTConfig(vit.Size(48, 2, 3), 16, 32), (32, 48)),
    "distilled": (vit.ViTConfig(vit.Size(48, 2, 3), 16, 32, distilled=True), (48, 32)),
    "root": (vit.ViTConfig(vit.Size(48, 2, 3), 8, 64, backbone=()), (32, 64)),
    "hybrid": (vit.ViTConfig(vit.Size(48, 2, 3), 1, 64, backbone=(1, 2)), (33, 50)),
}
# Names of ours that timm has under another name, at another size.
ALIASES = {"vit_large_patch16_512": "vit_large_patch16_224", "vit_huge_patch14_518": "vit_huge_patch14_224"}


def build(name: str, resolution: Resolution | None = None, ops: Ops = EAGER) -> vit.VisionTransformer:
    spec = vit.MODELS[name]
    model = spec.build(ops, resolution or spec.resolution, 1000)
    assert isinstance(model, vit.VisionTransformer)
    return model


def small(kind: str, ops: Ops = EAGER) -> tuple[vit.VisionTransformer, Tensor]:
    config, resolution = SMALL[kind]
    torch.manual_seed(0)
    model = vit.VisionTransformer(ops, config, resolution, 10)
    randomise(model)
    return model.eval(), torch.randn(2, 3, *resolution)


def randomise(model: nn.Module) -> None:
    """Moves every parameter away from zeros and ones, so that none can stand for another."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def reference(timm: ModuleType, name: str, resolution: Resolution) -> nn.Module:
    model = timm.create_model(ALIASES.get(name, name), img_size=resolution, num_classes=1000)
    assert isinstance(model, nn.Module)
    return model


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def test_models_are_the_catalog_rows_in_order() -> None:
    assert list(vit.MODELS) == [name for name, entry in catalog().items() if entry.family in ("vit", "deit")]
    assert all(vit.MODELS[name].resolution == catalog()[name].resolution for name in vit.MODELS)


@pytest.mark.parametrize("name", vit.MODELS)
def test_parameters_and_macs_are_the_catalogs(name: str) -> None:
    entry = catalog()[name]
    found, given = count(name)
    assert given == [(1, 1000)]
    assert found.params_m == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)


@pytest.mark.parametrize("name", vit.MODELS)
def test_state_dict_has_timms_names_and_shapes(name: str, timm: ModuleType) -> None:
    with numberless():
        theirs = reference(timm, name, vit.MODELS[name].resolution)
    assert shapes(published(name)) == shapes(theirs)


def without_drop_path(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return model


def twins(timm: ModuleType, name: str, resolution: Resolution) -> tuple[nn.Module, nn.Module, Tensor]:
    """Our model and timm's with equal weights, and an image for both."""
    torch.manual_seed(0)
    theirs = reference(timm, name, resolution).eval()
    randomise(theirs)
    with torch.device("meta"):
        ours = build(name, resolution).eval()
    ours.load_state_dict({k: v.clone() for k, v in theirs.state_dict().items()}, strict=True, assign=True)
    return ours.requires_grad_(), theirs, torch.randn(2, 3, *resolution)


@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        ("vit_tiny_patch16_224", (224, 224)),
        ("vit_small_patch32_224", (96, 160)),
        ("deit_tiny_distilled_patch16_224", (96, 64)),
        ("vit_tiny_r_s16_p8_224", (64, 96)),
        ("vit_small_r26_s32_224", (65, 98)),
        ("vit_base_r50_s16_224", (64, 47)),
    ],
)
def test_equal_weights_give_timms_logits(name: str, resolution: Resolution, timm: ModuleType) -> None:
    ours, theirs, image = twins(timm, name, resolution)
    with torch.no_grad():
        assert relative_error(ours(image), theirs(image)) < 1e-5


@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        ("deit_tiny_distilled_patch16_224", (32, 48)),
        ("vit_tiny_r_s16_p8_224", (64, 32)),
        ("vit_small_r26_s32_224", (65, 98)),
    ],
)
def test_equal_weights_give_timms_gradients(name: str, resolution: Resolution, timm: ModuleType) -> None:
    # In double precision, or ReLUs that rounding switches would differ more than a wrong gradient might.
    ours, theirs, image = twins(timm, name, resolution)
    expected = theirs.double().train()(image.double())
    actual = without_drop_path(ours).double().train()(image.double())
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    gradients = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        gradient = gradients[key].grad
        assert parameter.grad is not None
        assert gradient is not None, key
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-7, atol=1e-9 * parameter.grad.abs().max().item())


def test_equal_seeds_drop_what_timm_drops(timm: ModuleType) -> None:
    config, (height, width) = SMALL["plain"]
    config = dataclasses.replace(config, dropout=0.3, drop_path=0.4)
    torch.manual_seed(0)
    ours = vit.VisionTransformer(EAGER, config, (height, width), 10)
    randomise(ours)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=(height, width),
        patch_size=config.patch,
        embed_dim=config.size.width,
        depth=config.size.depth,
        num_heads=config.size.heads,
        num_classes=10,
        pos_drop_rate=0.3,
        proj_drop_rate=0.3,
        drop_path_rate=0.4,
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(4, 3, height, width)
    logits = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        logits.append(model.train()(image))
    assert relative_error(logits[0], logits[1]) < 1e-5
    assert relative_error(logits[0], ours.eval()(image)) > 0.01


def test_only_what_the_authors_drop_is_dropped() -> None:
    rates = {name: (config.dropout, config.drop_path) for name, config in vit.VIT_CONFIGS.items()}
    dropping = {name for name, (dropout, _) in rates.items() if dropout}
    large = {"vit_large_patch16_224", "vit_large_patch16_384", "vit_large_patch16_512", "vit_large_r50_s32_224"}
    large |= {"vit_large_r50_s32_384", "vit_base_r50_s16_224", "vit_base_r50_s16_384"}
    assert dropping == large | {"vit_huge_patch14_224", "vit_huge_patch14_518"}
    assert {rate for rate in rates.values() if any(rate)} == {(0.1, 0.0)}
    assert {(config.dropout, config.drop_path) for config in vit.DEIT_CONFIGS.values()} == {(0.0, 0.1)}


@pytest.mark.parametrize("kind", SMALL)
def test_training_mode_changes_nothing_where_nothing_is_dropped(kind: str) -> None:
    model, image = small(kind)
    torch.testing.assert_close(model.train()(image), model.eval()(image), rtol=0, atol=0)


def test_distilled_logits_average_both_heads() -> None:
    model, image = small("distilled")
    both = model(image)
    assert model.head_dist is not None
    with torch.no_grad():
        model.head_dist.weight.zero_()
        model.head_dist.bias.zero_()
        first = 2 * model(image)
        assert not torch.allclose(both, first)
        model.head.weight.zero_()
        model.head.bias.fill_(4)
    torch.testing.assert_close(model(image), torch.full_like(both, 2))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("vit_tiny_patch16_224", (224, 224), (160, 256)),
        ("vit_tiny_patch16_224", (384, 384), (224, 224)),
        ("vit_tiny_patch16_384", (224, 224), (384, 384)),
        ("vit_tiny_patch16_224", (224, 224), (112, 448)),  # as many positions as published, another grid
        ("vit_tiny_patch16_224", (144, 256), (144, 256)),  # 9 x 16 positions could be 12 x 12
        ("deit_tiny_distilled_patch16_224", (224, 224), (96, 64)),
        ("vit_tiny_r_s16_p8_224", (384, 384), (224, 160)),
        ("vit_small_r26_s32_224", (224, 224), (384, 100)),
    ],
)
def test_weights_of_another_resolution_are_resampled_as_timm_does(
    name: str, old: Resolution, new: Resolution, timm: ModuleType
) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    torch.manual_seed(0)
    source, target = build(name, old), build(name, new)
    state = source.state_dict()
    resized = target.resize_state_dict(state)
    expected = checkpoint_filter_fn(state, reference(timm, name, new))
    torch.testing.assert_close(resized["pos_embed"], expected["pos_embed"], rtol=0, atol=1e-6)
    assert all(resized[key] is tensor for key, tensor in state.items() if key != "pos_embed")
    target.load_state_dict(resized, strict=True)
    prefix = target.prefix_tokens
    assert torch.equal(target.pos_embed[:, :prefix], source.pos_embed[:, :prefix])
    assert torch.equal(target.pos_embed, source.pos_embed) == (old == new)


def test_table_of_an_unknown_grid_is_refused() -> None:
    state = build("vit_tiny_patch16_224", (192, 256)).state_dict()
    with pytest.raises(ValueError, match="192 cells is not square"):
        build("vit_tiny_patch16_224").resize_state_dict(state)


@pytest.mark.parametrize("name", vit.MODELS)
def test_exactly_the_catalogs_resolutions_are_taken(name: str) -> None:
    multiple = catalog()[name].resolution_multiple
    config = {**vit.VIT_CONFIGS, **vit.DEIT_CONFIGS}[name]
    for side in range(1, 100):
        if side % multiple:
            with pytest.raises(ValueError, match=rf"{side}x{multiple} is not a positive multiple of {multiple} px"):
                vit.MODELS[name].build(EAGER, (side, multiple), 10)
        else:
            assert config.grid((side, multiple)) == (-(-side // config.stride), -(-multiple // config.stride))
    with pytest.raises(ValueError, match="0x32 is not"):
        vit.MODELS[name].build(EAGER, (0, 32), 10)


@pytest.mark.parametrize(
    ("name", "resolution"),
    [
        ("vit_tiny_patch16_224", (16, 80)),
        ("vit_small_patch32_224", (32, 96)),
        ("vit_large_patch14_224", (14, 42)),
        ("vit_tiny_r_s16_p8_224", (32, 96)),
        ("vit_small_r26_s32_224", (1, 75)),
        ("vit_base_r50_s16_224", (17, 31)),
        ("vit_large_r50_s32_224", (63, 33)),
    ],
)
def test_resolutions_taken_also_run(name: str, resolution: Resolution) -> None:
    with torch.device("meta"):
        assert build(name, resolution)(torch.empty(2, 3, *resolution)).shape == (2, 1000)


def test_image_of_another_size_is_refused() -> None:
    model, _ = small("plain")
    with pytest.raises(ValueError, match=r"\[1, 3, 48, 32\] given to a model built for 32x48"):
        model(torch.zeros(1, 3, 48, 32))  # as many patches as 32 x 48: only the check tells them apart


@pytest.mark.parametrize("kind", SMALL)
def test_sdpa_channels_last_and_deepcopy_agree_with_eager(kind: str) -> None:
    model, image = small(kind)
    expected = model(image)
    assert relative_error(copy.deepcopy(model)(image), expected) == 0
    assert relative_error(small(kind, SDPA)[0](image), expected) < 1e-5
    nhwc = model.to(memory_format=torch.channels_last)
    assert relative_error(nhwc(image.to(memory_format=torch.channels_last)), expected) < 1e-5


@pytest.mark.parametrize("kind", SMALL)
def test_bf16_stays_bf16_and_near(kind: str) -> None:
    model, image = small(kind)
    expected = model(image)
    actual = model.to(torch.bfloat16)(image.to(torch.bfloat16))
    assert actual.dtype is torch.bfloat16
    assert relative_error(actual.float(), expected) < 0.05
    actual.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", SMALL)
def test_compiles_without_a_graph_break(kind: str) -> None:
    model, image = small(kind)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative_error(compiled(image), model(image)) < 1e-5


@pytest.mark.parametrize("kind", SMALL)
def test_trains_on_fake_tensors_in_another_default_dtype(kind: str) -> None:
    config, resolution = SMALL[kind]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            model = vit.VisionTransformer(EAGER, config, resolution, 10)
            logits = model(torch.empty(2, 3, *resolution))
            logits.sum().backward()
    finally:
        torch.set_default_dtype(default)
    assert logits.dtype is torch.bfloat16
    assert logits.shape == (2, 10)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_attention_reads_the_packed_projection_without_a_copy() -> None:
    seen: list[tuple[Tensor, ...]] = []

    def attention(*qkv: Tensor) -> Tensor:
        seen.append(qkv)
        return EAGER.attention(*qkv)

    model, image = small("plain", dataclasses.replace(EAGER, attention=attention))
    model(image)
    assert len(seen) == 2
    for qkv in seen:
        assert [part.shape for part in qkv] == [(2, 3, 7, 16)] * 3
        assert len({part.untyped_storage().data_ptr() for part in qkv}) == 1
        assert all(part.stride(-1) == 1 for part in qkv)


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    model = vit.VisionTransformer(EAGER, vit.ViTConfig(vit.Size(96, 1, 3), 1, 64, backbone=(1, 1)), (160, 160), 10)
    block = model.blocks[0]
    assert isinstance(block, vit.Block)
    for tensor in (model.pos_embed, block.attn.qkv.weight, block.mlp.fc1.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.05)
    proj = model.patch_embed.proj
    assert proj.weight.std().item() == pytest.approx(proj.in_channels**-0.5, rel=0.05)
    state = model.state_dict()
    assert state["cls_token"].any()
    for key, tensor in state.items():
        if key.endswith(("bias", "norm3.weight")):
            assert not tensor.any(), key
        elif "norm" in key:
            assert (tensor == 1).all(), key
    assert model(torch.randn(1, 3, 160, 160)).std() > 1e-3  # a head of zeros would hide every wrong result


@pytest.mark.parametrize("name", [name for name in vit.MODELS if name not in ALIASES])
def test_preprocessing_is_timms(name: str, timm: ModuleType) -> None:
    theirs, ours = timm.get_pretrained_cfg(name), vit.MODELS[name].preprocessing
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)
