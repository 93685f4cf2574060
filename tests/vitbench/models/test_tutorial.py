"""The tutorials' models against their counts and against the tutorials, written out plainly."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.vitbench.models.numberless import count
from vitbench.catalog import catalog
from vitbench.models import coatnet_blocks, tutorial
from vitbench.ops.bundle import EAGER

ROWS = [entry for entry in catalog().values() if entry.family == "tutorial"]


def randomise(model: nn.Module) -> None:
    """Moves every parameter and statistic away from 0 and 1, so that none can stand for another."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor), alpha=0.1)


def test_models_are_the_catalog_rows_in_order() -> None:
    assert list(tutorial.MODELS) == [row.model for row in ROWS]
    assert all(tutorial.MODELS[row.model].resolution == row.resolution for row in ROWS)


@pytest.mark.parametrize("name", tutorial.MODELS)
def test_parameters_and_macs_are_the_catalogs(name: str) -> None:
    entry = catalog()[name]
    found, given = count(name)
    assert given == [(1, 1000)]
    assert found.params_m == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)


@pytest.mark.parametrize(("name", "depth"), [("tutorial_vit", 5), ("tutorial_vit_depth1", 1)])
def test_counts_of_the_posts_vit_are_those_of_its_description(name: str, depth: int) -> None:
    c, tokens = 128, 197
    patches, positions, norm, linear = 3 * 16 * 16 * c + c, tokens * c, 2 * c, c * c
    parameters = patches + c + positions + depth * (2 * norm + linear + 2 * (linear + c)) + norm + c * 1000 + 1000
    macs = 196 * 3 * 16 * 16 * c + depth * (5 * tokens * linear + 2 * tokens * tokens * c) + c * 1000
    assert catalog()[name].params_m == parameters / 1e6
    assert catalog()[name].gmacs == pytest.approx(macs / 1e9, abs=6e-5)


def test_posts_vit_is_its_description() -> None:
    torch.manual_seed(0)
    model = tutorial.TutorialViT(EAGER, tutorial.TutorialViTConfig(width=12, heads=3, depth=2), (32, 48), 2)
    randomise(model)
    image = torch.randn(2, 3, 32, 48)
    p = model.state_dict()

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    patches = F.conv2d(image, p["patch_embed.weight"], p["patch_embed.bias"], stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([p["cls_token"].repeat(2, 1, 1), patches], dim=1) + p["pos_embed"]
    for block in ("blocks.0", "blocks.1"):
        n = norm(x, f"{block}.norm", 1e-6)
        q = k = v = F.relu(n @ p[f"{block}.attn.proj.weight"].T)
        q, k, v = (torch.cat(part.chunk(3, dim=2), dim=0) for part in (q, k, v))  # heads stacked along the batch
        heads = torch.cat(((q @ k.transpose(1, 2) / 4**0.5).softmax(-1) @ v).chunk(3, dim=0), dim=2)
        y = norm(2 * heads + n, f"{block}.attn.norm", 1e-5) + x
        hidden = F.gelu(norm(y, f"{block}.norm", 1e-6) @ p[f"{block}.mlp.fc1.weight"].T + p[f"{block}.mlp.fc1.bias"])
        x = hidden @ p[f"{block}.mlp.fc2.weight"].T + p[f"{block}.mlp.fc2.bias"] + y
    logits = norm(x[:, 0], "norm", 1e-5) @ p["head.weight"].T + p["head.bias"]
    torch.testing.assert_close(model(image), logits)


def test_posts_vit_starts_as_the_post_does() -> None:
    torch.manual_seed(0)
    model = tutorial.TutorialViT(EAGER, tutorial.VIT_CONFIGS["tutorial_vit"], (224, 224), 2)
    assert 0 <= model.cls_token.min() < 0.1 < 0.9 < model.cls_token.max() < 1
    assert model.pos_embed.std().item() == pytest.approx(1, rel=0.02)
    with torch.no_grad():
        resized = tutorial.TutorialViT(EAGER, tutorial.VIT_CONFIGS["tutorial_vit"], (96, 160), 2)
        resized.load_state_dict(resized.resize_state_dict(model.state_dict()), strict=True)
    assert torch.equal(resized.pos_embed[:, 0], model.pos_embed[:, 0])


def block_norm(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    leaves = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (p[f"{name}.{leaf}"][:, None, None] for leaf in leaves)
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize(("name", "pre_norm"), [("tutorial_coatnet_0", False), ("tutorial_coatnet_0_prenorm", True)])
def test_convolutional_block_is_the_tutorials(name: str, pre_norm: bool) -> None:
    torch.manual_seed(0)
    config = tutorial.COATNET_CONFIGS[name].conv
    block = coatnet_blocks.MBConv(EAGER, config, 8, 8, downsamples=True, drop_path=0.0).eval()
    randomise(block)
    p = block.state_dict()
    assert any(key.startswith("pre_norm") for key in p) == pre_norm
    x = torch.randn(2, 8, 6, 6)
    y = block_norm(x, p, "pre_norm") if pre_norm else x
    y = F.gelu(block_norm(F.conv2d(y, p["conv1_1x1.weight"], stride=2), p, "norm1"))
    y = F.gelu(block_norm(F.conv2d(y, p["conv2_kxk.weight"], padding=1, groups=32), p, "norm2"))
    squeezed = F.gelu(y.mean((2, 3)) @ p["se.fc1.weight"].flatten(1).T)
    assert squeezed.shape == (2, 2)  # a quarter of the input's width
    y = y * (squeezed @ p["se.fc2.weight"].flatten(1).T).sigmoid()[:, :, None, None]
    y = block_norm(F.conv2d(y, p["conv3_1x1.weight"]), p, "norm3")
    shortcut = F.conv2d(F.max_pool2d(x, 3, 2, 1), p["shortcut.expand.weight"])  # though the width stays
    torch.testing.assert_close(block(x), y + shortcut)


def test_attention_block_is_the_tutorials() -> None:
    torch.manual_seed(0)
    config = tutorial.COATNET_CONFIGS["tutorial_coatnet_2"].transformer
    block = coatnet_blocks.Transformer(EAGER, config, 16, 24, (2, 3), downsamples=True, drop_path=0.0).eval()
    randomise(block)
    p = block.state_dict()
    x = torch.randn(1, 16, 4, 6)
    pooled = F.max_pool2d(x, 3, 2, 1)
    n = F.layer_norm(pooled.flatten(2).transpose(1, 2), (16,), p["norm1.norm.weight"], p["norm1.norm.bias"], 1e-5)
    q, k, v = (n @ p["attn.qkv.weight"].flatten(1).T).view(6, 8, 3, 32).permute(2, 1, 0, 3)  # 8 heads of 32
    table = p["attn.rel_pos.relative_position_bias_table"]
    heads = []
    for h in range(8):
        scores = q[h] @ k[h].T * 32**-0.5
        for i in range(6):
            for j in range(6):
                scores[i, j] += table[(i // 3 - j // 3 + 1) * 5 + (i % 3 - j % 3 + 2), h]
        heads.append(scores.softmax(-1) @ v[h])
    attended = torch.cat(heads, 1) @ p["attn.proj.weight"].flatten(1).T + p["attn.proj.bias"]
    y = F.conv2d(pooled, p["shortcut.expand.weight"]).flatten(2).transpose(1, 2) + attended
    n = F.layer_norm(y, (24,), p["norm2.weight"], p["norm2.bias"], 1e-5)
    hidden = F.gelu(n @ p["mlp.fc1.weight"].flatten(1).T + p["mlp.fc1.bias"])
    assert hidden.shape[-1] == 4 * 16
    y = y + hidden @ p["mlp.fc2.weight"].flatten(1).T + p["mlp.fc2.bias"]
    torch.testing.assert_close(block(x), y.transpose(1, 2).view(1, 24, 2, 3))


def test_stem_head_and_slip_are_the_tutorials() -> None:
    with torch.device("meta"):
        model = tutorial.MODELS["tutorial_coatnet_2"].build(EAGER, (224, 224), 1000)
    state = model.state_dict()
    assert list(state["stages.3.blocks.1.attn.proj.weight"].shape) == [1026, 256, 1, 1]
    assert list(state["head.fc.weight"].shape) == [1000, 1026]
    assert not {"norm.weight", "head.norm.weight", "head.fc.bias", "head.pre_logits.fc.weight"} & state.keys()
    assert "stem.norm2.weight" in state
    plain = tutorial.COATNET_CONFIGS["tutorial_coatnet_2_prenorm"]
    without = dataclasses.replace(plain, conv=dataclasses.replace(plain.conv, pre_norm=False))
    assert without == tutorial.COATNET_CONFIGS["tutorial_coatnet_2"]
