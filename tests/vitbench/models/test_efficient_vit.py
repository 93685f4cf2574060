"""Efficient ViT and Convolutional Cross ViT: the authors' names, timm's EfficientNet, hand-computed attention."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.vitbench.models.numberless import count, published
from vitbench.catalog import catalog
from vitbench.models import efficient_vit
from vitbench.models.efficient_vit import Attention, Branch, Features, Heads, PreNorm, Projected, cut_patches
from vitbench.models.efficientnet import EfficientNetConfig, Stage
from vitbench.ops.bundle import EAGER

# B0 of two stages: stride 4 at its end, 2 after its first block; 320 channels after the head, 8 after that block.
BACKBONE = EfficientNetConfig(0.25, 1.0, 0.2, stages=(Stage(1, 3, 1, 1, 16), Stage(2, 5, 2, 6, 24)))
HEADS = Heads(heads=2, head_width=4, hidden=12)
SMALL = Branch(None, 320, 4, patch=2, width=12, depth=1, rows=5)
LARGE = Branch(1, 8, 2, patch=8, width=16, depth=2, rows=3)
EFFICIENT = efficient_vit.EfficientViTConfig(SMALL, HEADS, BACKBONE, trained_blocks=1)
CROSS = efficient_vit.CrossViTConfig(SMALL, LARGE, HEADS, BACKBONE, layers=2, rounds=2)


def calibrate(model: nn.Module, size: tuple[int, int] = (16, 16), images: int = 8) -> None:
    """Gives norms the statistics of noise, so that the image reaches the logits in evaluation too."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(torch.randn(images, 3, *size))
    model.eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def test_models_are_the_catalog_rows_in_order() -> None:
    assert list(efficient_vit.MODELS) == [name for name, entry in catalog().items() if entry.family == "efficient_vit"]
    assert all(spec.num_classes == 1 for spec in efficient_vit.MODELS.values())


@pytest.mark.parametrize("name", efficient_vit.MODELS)
def test_parameters_and_macs_are_the_catalogs(name: str) -> None:
    entry = catalog()[name]
    found, given = count(name)
    assert given == [(1, 1)]
    assert round(found.params_m, 6) == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def b0_names() -> set[str]:
    names = {"_conv_stem.weight", "_conv_head.weight", "_fc.weight", "_fc.bias"}
    names |= {f"{norm}.{leaf}" for norm in ("_bn0", "_bn1") for leaf in NORM}
    for i in range(16):
        parts = (("_expand_conv", "_bn0"),) if i else ()
        for conv, norm in (*parts, ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            names |= {f"_blocks.{i}.{conv}.weight", *(f"_blocks.{i}.{norm}.{leaf}" for leaf in NORM)}
        names |= {f"_blocks.{i}._se_{part}.{leaf}" for part in ("reduce", "expand") for leaf in ("weight", "bias")}
    return names


def affine(*modules: str) -> set[str]:
    return {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}


def test_efficient_vit_has_the_official_names() -> None:
    names = {f"efficient_net.{name}" for name in b0_names()}
    names |= {"pos_embedding", "cls_token"} | affine("patch_to_embedding", "mlp_head.0", "mlp_head.2")
    for layer in (f"transformer.layers.{i}" for i in range(6)):
        names |= {f"{layer}.0.fn.to_qkv.weight"} | affine(f"{layer}.0.norm", f"{layer}.0.fn.to_out.0")
        names |= affine(f"{layer}.1.norm", f"{layer}.1.fn.net.0", f"{layer}.1.fn.net.3")
    state = published("efficient_vit_b0").state_dict()
    assert set(state) == names
    assert state["pos_embedding"].shape == (32, 1, 1024)
    assert state["patch_to_embedding.weight"].shape == (1024, 62720)


def attention_names(prefix: str) -> set[str]:
    return {f"{prefix}.fn.to_q.weight", f"{prefix}.fn.to_kv.weight"} | affine(f"{prefix}.norm", f"{prefix}.fn.to_out.0")


def test_conv_cross_vit_has_the_official_names() -> None:
    names = affine("sm_mlp_head.0", "sm_mlp_head.1", "lg_mlp_head.0", "lg_mlp_head.1")
    for embedder in ("sm_image_embedder", "lg_image_embedder"):
        names |= {f"{embedder}.efficient_net.{name}" for name in b0_names()}
        names |= {f"{embedder}.pos_embedding", f"{embedder}.cls_token"} | affine(f"{embedder}.to_patch_embedding.1")
    for layer in (f"multi_scale_encoder.layers.{i}" for i in range(4)):
        for branch, depth in ((0, 2), (1, 3)):
            names |= affine(f"{layer}.{branch}.norm")
            for block in (f"{layer}.{branch}.layers.{i}" for i in range(depth)):
                names |= attention_names(f"{block}.0")
                names |= affine(f"{block}.1.norm", f"{block}.1.fn.net.0", f"{block}.1.fn.net.3")
        for cross in (f"{layer}.2.layers.{i}.{side}" for i in range(2) for side in range(2)):
            names |= attention_names(f"{cross}.fn") | affine(f"{cross}.project_in", f"{cross}.project_out")
    state = published("conv_cross_vit_b0").state_dict()
    assert set(state) == names
    assert state["sm_image_embedder.pos_embedding"].shape == (1, 1025, 192)
    assert state["lg_image_embedder.pos_embedding"].shape == (1, 17, 384)
    assert state["lg_image_embedder.to_patch_embedding.1.weight"].shape == (384, 75264)


def test_features_are_those_of_timms_port_of_the_reference(timm: ModuleType) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnet_b0")
    calibrate(theirs, (64, 64))
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.rand_like(tensor), alpha=0.1)
    whole, three = (Features(EAGER, efficient_vit.B0, blocks).eval() for blocks in (None, 3))
    # Both list their tensors in the order data meets them.
    state = dict(zip(whole.state_dict(), theirs.state_dict().values(), strict=True))
    for model in (whole, three):
        model.load_state_dict(state, strict=True)
    image = torch.randn(2, 3, 75, 64)
    with torch.no_grad():
        assert relative_error(whole(image), theirs.forward_features(image)) < 1e-5
        stem = theirs.bn1(theirs.conv_stem(image))
        assert relative_error(three(image), theirs.blocks[1](theirs.blocks[0](stem))) < 1e-5
    assert whole._bn0.eps == 1e-3
    assert whole._bn0.momentum == pytest.approx(0.01)


def test_patches_are_cut_in_the_official_order() -> None:
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    cut = cut_patches(x, 2)
    assert cut.shape == (2, 6, 12)
    for n, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        window = x[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = [window[c, i, j] for i in range(2) for j in range(2) for c in range(3)]
        assert torch.equal(cut[1, n], torch.stack(expected))


def hand_attention(q: Tensor, k: Tensor, v: Tensor, out: nn.Module, heads: int) -> Tensor:
    parts = []
    for head in range(heads):
        columns = slice(head * q.shape[1] // heads, (head + 1) * q.shape[1] // heads)
        scores = q[:, columns] @ k[:, columns].T / (q.shape[1] // heads) ** 0.5
        parts.append(scores.softmax(-1) @ v[:, columns])
    return out(torch.cat(parts, dim=1))


def test_packed_attention_is_query_key_value() -> None:
    torch.manual_seed(0)
    attention = Attention(EAGER, 12, HEADS, packed=True).eval()
    x = torch.randn(1, 3, 12)
    q, k, v = (F.linear(x[0], part) for part in attention.to_qkv.weight.split(8))
    torch.testing.assert_close(attention(x)[0], hand_attention(q, k, v, attention.to_out, 2))


def test_cross_attention_normalises_only_its_query_and_attends_to_itself_too() -> None:
    torch.manual_seed(0)
    cross = Projected(12, 16, PreNorm(16, Attention(EAGER, 16, HEADS, packed=False))).eval()
    own, other = torch.randn(1, 1, 12), 3 + 2 * torch.randn(1, 4, 16)
    attention = cross.fn.fn
    query = F.layer_norm(cross.project_in(own[0]), (16,))
    keys = torch.cat([query, other[0]])
    k, v = (F.linear(keys, part) for part in attention.to_kv.weight.split(8))
    expected = cross.project_out(hand_attention(attention.to_q(query), k, v, attention.to_out, 2))
    torch.testing.assert_close(cross(own, other)[0], expected)


def test_cross_attention_moves_class_tokens_only_small_first() -> None:
    torch.manual_seed(0)
    cross = efficient_vit.CrossTransformer(EAGER, 12, 16, 2, HEADS).eval()
    small, large = torch.randn(2, 3, 12), torch.randn(2, 4, 16)
    small_out, large_out = cross(small, large)
    assert torch.equal(small_out[:, 1:], small[:, 1:])
    assert torch.equal(large_out[:, 1:], large[:, 1:])
    a, b = small[:, :1], large[:, :1]
    for layer in cross.layers:
        a = a + layer[0](a, large[:, 1:])
        b = b + layer[1](b, small[:, 1:])
    torch.testing.assert_close(small_out[:, :1], a)
    torch.testing.assert_close(large_out[:, :1], b)


def test_a_position_belongs_to_a_token_and_not_to_a_place_in_the_batch() -> None:
    torch.manual_seed(0)
    model = efficient_vit.EfficientViT(EAGER, EFFICIENT, (16, 16), 10)
    calibrate(model)
    x = torch.randn(40, 3, 16, 16)  # more images than the table has rows
    together = model(x)
    torch.testing.assert_close(together, torch.cat([model(image[None]) for image in x]), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.pos_embedding[4] += 3 * torch.randn(1, 12)
        assert relative_error(model(x), together) > 1e-3, "the last patch has a position"


def test_the_literal_one_has_positions_by_place_in_the_batch_as_released() -> None:
    torch.manual_seed(0)
    model = efficient_vit.EfficientViT(EAGER, dataclasses.replace(EFFICIENT, literal=True), (16, 16), 10)
    calibrate(model, images=5)
    seen: list[Tensor] = []
    model.dropout.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 3, 16, 16).expand(3, -1, -1, -1)
    logits = model(x)
    steps = seen[0] - seen[0][:1]  # of equal images, the rows of the table but for the first one's
    torch.testing.assert_close(steps, (model.pos_embedding[:3] - model.pos_embedding[:1]).expand(-1, 5, -1))
    assert relative_error(logits[1], logits[0]) > 1e-3
    with pytest.raises(ValueError, match="batch 6 has more images than the position table rows, 5"):
        model(x[:1].expand(6, -1, -1, -1))


def test_logits_of_the_cross_model_are_the_sum_of_both_heads() -> None:
    torch.manual_seed(0)
    model = efficient_vit.ConvCrossViT(EAGER, CROSS, (16, 16), 3)
    calibrate(model)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        total = model(x)
        kept = [model.sm_mlp_head, model.lg_mlp_head]
        parts = []
        for head in kept:
            state = {key: tensor.clone() for key, tensor in head.state_dict().items()}
            head[1].weight.zero_()
            head[1].bias.zero_()
            parts.append(model(x))
            head.load_state_dict(state)
    torch.testing.assert_close(parts[0] + parts[1], total)
    assert all(part.abs().max() > 1e-3 for part in parts)


def test_the_frozen_and_the_unused_are_the_official_ones() -> None:
    model = published("efficient_vit_b0")
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    blocks = {key for key, _ in model.named_parameters() if key.startswith("efficient_net._blocks.")}
    assert frozen == {key for key in blocks if int(key.split(".")[2]) < 13}
    assert round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6, 2) == 107.75

    cross = efficient_vit.ConvCrossViT(EAGER, CROSS, (16, 16), 3)
    cross(torch.randn(2, 3, 16, 16)).sum().backward()
    unused = {key for key, parameter in cross.named_parameters() if parameter.grad is None}
    large = "lg_image_embedder.efficient_net."
    assert all(parameter.requires_grad for parameter in cross.parameters())
    assert unused == {
        key
        for key, _ in cross.named_parameters()
        if "._fc." in key
        or key.startswith(tuple(large + part for part in ("_blocks.1", "_blocks.2", "_conv_h", "_bn1")))
    }


def test_dropout_is_where_the_release_has_it() -> None:
    rates = {
        name: [(key, m.p) for key, m in published(name).named_modules() if isinstance(m, nn.Dropout)]
        for name in efficient_vit.MODELS
    }
    in_hidden = {name: {p for key, p in found if ".net." in key} for name, found in rates.items()}
    elsewhere = {name: {p for key, p in found if ".net." not in key} for name, found in rates.items()}
    assert in_hidden == {name: {0.15 if "cross" in name else 0.0} for name in rates}
    assert elsewhere == {name: {0.15} for name in rates}


@pytest.mark.parametrize("name", efficient_vit.MODELS)
def test_resolutions_are_multiples_of_224(name: str) -> None:
    assert catalog()[name].resolution_multiple == 224
    spec = efficient_vit.MODELS[name]
    with torch.device("meta"):
        assert spec.build(EAGER, (224, 448), 1).eval()(torch.empty(1, 3, 224, 448)).shape == (1, 1)
        with pytest.raises(ValueError, match="resolution 224x256 is not a positive multiple of 224 px"):
            spec.build(EAGER, (224, 256), 1)
        with pytest.raises(ValueError, match="resolution 224x256 is not"):
            spec.build(EAGER, (224, 224), 1)(torch.empty(1, 3, 224, 256))
        with pytest.raises(ValueError, match=r"makes 37 tokens, more than (32|17) positions"):
            spec.build(EAGER, (1344, 1344), 1)
