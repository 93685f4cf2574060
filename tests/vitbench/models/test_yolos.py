"""YOLOS against the catalog, against transformers, and against what its position tables promise."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.vitbench.models.numberless import count, published
from vitbench.catalog import catalog
from vitbench.models import yolos
from vitbench.models.vit import Size
from vitbench.ops.bundle import EAGER

SMALL = yolos.YOLOSConfig(Size(24, 3, 3), (32, 64), middle=True, resolution=(32, 64), tokens=4)


def build(name: str) -> nn.Module:
    return yolos.MODELS[name].build(EAGER, yolos.MODELS[name].resolution, 91)


def small() -> yolos.YOLOS:
    torch.manual_seed(0)
    model = yolos.YOLOS(EAGER, SMALL, 7).eval()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def test_models_are_the_catalog_rows_in_order() -> None:
    assert list(yolos.MODELS) == [name for name, entry in catalog().items() if entry.family == "yolos"]
    assert all(spec.resolution == catalog()[name].resolution for name, spec in yolos.MODELS.items())


@pytest.mark.parametrize("name", yolos.MODELS)
def test_parameters_and_macs_are_the_catalogs(name: str) -> None:
    entry = catalog()[name]
    found, _ = count(name)
    assert round(found.params_m, 6) == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)


@pytest.mark.parametrize(
    ("name", "rows", "middle"),
    [("yolos_ti", 4251, 0), ("yolos_s", 1829, 11), ("yolos_s_dwr", 1829, 13), ("yolos_b", 4301, 11)],
)
def test_state_dict_has_the_official_names(name: str, rows: int, middle: int) -> None:
    state = published(name).state_dict()
    width, depth = state["backbone.cls_token"].shape[-1], yolos.CONFIGS[name].size.depth
    names = {f"backbone.{part}" for part in ("cls_token", "det_token", "pos_embed")}
    modules = ["backbone.norm", "backbone.patch_embed.proj"]
    modules += [f"{head}.layers.{i}" for head in ("class_embed", "bbox_embed") for i in range(3)]
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules += [f"backbone.blocks.{i}.{part}" for i in range(depth) for part in parts]
    names |= {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}
    assert set(state) == names | ({"backbone.mid_pos_embed"} if middle else set())
    assert state["backbone.pos_embed"].shape == (1, rows, width)
    assert state["backbone.det_token"].shape == (1, 100, width)
    assert not middle or state["backbone.mid_pos_embed"].shape == (middle, 1, rows, width)


def as_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under the names of transformers (version 5)."""
    rules = [
        ("backbone.blocks.", "vit.encoder.layer."),
        ("backbone.norm.", "vit.layernorm."),
        ("backbone.patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
        ("backbone.cls_token", "vit.embeddings.cls_token"),
        ("backbone.det_token", "vit.embeddings.detection_tokens"),
        ("backbone.pos_embed", "vit.embeddings.position_embeddings"),
        ("backbone.mid_pos_embed", "vit.encoder.interpolation.mid_position_embeddings"),
        (".attn.proj.", ".attention.output.dense."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        ("class_embed.", "class_labels_classifier."),
        ("bbox_embed.", "bbox_predictor."),
    ]
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for old, new in rules:
            key = key.replace(old, new)
        if ".attn.qkv." in key:
            for part, chunk in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[key.replace(".attn.qkv.", f".attention.attention.{part}.")] = chunk
        else:
            renamed[key] = tensor
    return renamed


@pytest.mark.parametrize(("name", "size"), [("yolos_ti", (96, 135)), ("yolos_s", (160, 113))])
def test_equal_weights_give_transformers_boxes(name: str, size: tuple[int, int], timm: ModuleType) -> None:
    # Through the timm fixture, because transformers imports the torchvision that it repairs.
    transformers = pytest.importorskip("transformers", minversion="5.0")
    config = yolos.CONFIGS[name]
    torch.manual_seed(0)
    ours = build(name).eval()
    settings = transformers.YolosConfig(
        hidden_size=config.size.width,
        num_hidden_layers=config.size.depth,
        num_attention_heads=config.size.heads,
        intermediate_size=4 * config.size.width,
        layer_norm_eps=1e-6,
        image_size=list(config.table),
        use_mid_position_embeddings=config.middle,
        num_labels=91,
    )
    with torch.device("meta"):
        theirs = transformers.YolosForObjectDetection(settings).eval()
    theirs.load_state_dict(as_transformers(ours.state_dict()), strict=True, assign=True)
    images = torch.randn(2, 3, *size)
    # Its patch embedding wants the sides to be whole patches and gets them; ours floors by itself.
    whole = images[:, :, : size[0] // 16 * 16, : size[1] // 16 * 16]
    with torch.no_grad():
        found, expected = ours(images), theirs(whole)
    assert relative_error(found["pred_logits"], expected.logits) < 1e-5
    assert relative_error(found["pred_boxes"], expected.pred_boxes) < 1e-5
    assert relative_error(found["pred_logits"][0], found["pred_logits"][1]) > 1e-3


def test_tables_are_resampled_without_antialiasing_and_only_between_their_ends() -> None:
    backbone = small().backbone
    table = torch.arange(1 + 8 + 4.0)[None, :, None].expand(1, -1, 24)
    assert torch.equal(backbone.positions(table, (2, 4)), table)
    found = backbone.positions(table, (1, 2))
    wanted = F.interpolate(torch.arange(1, 9.0).view(1, 1, 2, 4), size=(1, 2), mode="bicubic", align_corners=False)
    assert found[0, :, 0].tolist() == pytest.approx([0, *wanted.flatten().tolist(), 9, 10, 11, 12])


def test_a_portrait_of_the_tables_size_gets_positions_of_its_own() -> None:
    """As many patches in another shape: the official code would take the table as it is."""
    backbone = small().backbone
    turned = backbone.positions(backbone.pos_embed, (4, 2))
    assert turned.shape == backbone.pos_embed.shape
    assert not torch.allclose(turned, backbone.pos_embed)


def test_every_block_but_the_last_adds_its_own_table() -> None:
    model = small()
    backbone, image = model.backbone, torch.randn(2, 3, 32, 64)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda module, args, output: (inputs.append(args[0]), outputs.append(output))[0])
    backbone(image)
    assert backbone.mid_pos_embed is not None
    assert len(backbone.mid_pos_embed) == 2
    for index in range(2):
        torch.testing.assert_close(inputs[index + 1], outputs[index] + backbone.mid_pos_embed[index])
    patches = backbone.patch_embed(image)
    torch.testing.assert_close(
        inputs[0],
        torch.cat([backbone.cls_token.expand(2, -1, -1), patches, backbone.det_token.expand(2, -1, -1)], 1)
        + backbone.pos_embed,
    )
    torch.testing.assert_close(backbone(image), backbone.norm(outputs[2][:, -4:]))


def test_tokens_that_change_places_take_their_boxes_along() -> None:
    model = small()
    image, order = torch.randn(1, 3, 48, 80), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        before = model(image)
        backbone = model.backbone
        assert backbone.mid_pos_embed is not None
        for table in (backbone.det_token, backbone.pos_embed, backbone.mid_pos_embed):
            table[..., -4:, :] = table[..., -4:, :][..., order, :]
        after = model(image)
    torch.testing.assert_close(after["pred_boxes"], before["pred_boxes"][:, order])
    assert relative_error(before["pred_boxes"][:, 0], before["pred_boxes"][:, 1]) > 1e-3


def test_sides_are_floored_and_the_mask_is_ignored() -> None:
    model = small()
    image = torch.randn(2, 3, 47, 79)
    mask = torch.ones(2, 47, 79, dtype=torch.bool)
    found = model(image)
    assert found["pred_logits"].shape == (2, 4, 8)
    assert torch.equal(model(image[:, :, :32, :64])["pred_boxes"], found["pred_boxes"])
    assert torch.equal(model(image, mask)["pred_boxes"], found["pred_boxes"])
    assert ((found["pred_boxes"] > 0) & (found["pred_boxes"] < 1)).all()
    assert all(catalog()[name].resolution_multiple == 1 for name in yolos.MODELS)
    with pytest.raises(ValueError, match="15x64 has a side shorter than a patch, 16 px"):
        yolos.MODELS["yolos_ti"].build(EAGER, (15, 64), 91)
