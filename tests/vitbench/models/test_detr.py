"""DETR against the catalog, transformers, timm's dilated ResNet and torch's own attention and layers."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.vitbench.models.numberless import count, published
from vitbench.catalog import catalog
from vitbench.models import detr
from vitbench.models.detection import pad_batch
from vitbench.models.detr import FrozenBatchNorm2d, sine_positions
from vitbench.models.resnet import ResNetConfig
from vitbench.ops.bundle import EAGER, SDPA, Ops
from vitbench.verify.outcome import without_dropout

SMALL = detr.DETRConfig(
    ResNetConfig((1, 1, 1, 1), bottleneck=True),
    width=32,
    heads=4,
    encoder_layers=2,
    decoder_layers=3,
    hidden=48,
    queries=6,
)


def build(name: str) -> nn.Module:
    return detr.MODELS[name].build(EAGER, (800, 1066), 91)


def small() -> detr.DETR:
    torch.manual_seed(0)
    return detr.DETR(EAGER, SMALL, 7).eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def randomise_norms(model: nn.Module) -> None:
    """Frozen norms as a trained backbone has them: none is the identity, none is another's."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.mul_(torch.empty_like(module.weight).uniform_(0.8, 1.2))
            module.bias.uniform_(-0.1, 0.1)


def test_models_are_the_catalog_rows_in_order() -> None:
    assert list(detr.MODELS) == [name for name, entry in catalog().items() if entry.family == "detr"]
    assert all(spec.resolution == catalog()[name].resolution for name, spec in detr.MODELS.items())


@pytest.mark.parametrize("name", detr.MODELS)
def test_parameters_and_macs_are_the_catalogs(name: str) -> None:
    entry = catalog()[name]
    found, _ = count(name)
    assert round(found.params_m, 6) == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)
    frozen = {key: p.numel() for key, p in published(name).named_parameters() if not p.requires_grad}
    assert sum(frozen.values()) == 222_400
    assert {key.split(".")[3] for key in frozen} == {"conv1", "layer1"}


def test_state_dict_has_the_official_names() -> None:
    affine = ("weight", "bias")
    names = {"query_embed.weight"}
    for module in ("input_proj", "class_embed", *(f"bbox_embed.layers.{i}" for i in range(3))):
        names |= {f"{module}.{leaf}" for leaf in affine}
    norms = [".bn1"]
    names.add("backbone.0.body.conv1.weight")
    for stage, blocks in zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True):
        for block in (f".layer{stage}.{i}" for i in range(blocks)):
            norms += [f"{block}.bn{i}" for i in (1, 2, 3)]
            names |= {f"backbone.0.body{block}.conv{i}.weight" for i in (1, 2, 3)}
        norms.append(f".layer{stage}.0.downsample.1")
        names.add(f"backbone.0.body.layer{stage}.0.downsample.0.weight")
    names |= {f"backbone.0.body{n}.{leaf}" for n in norms for leaf in (*affine, "running_mean", "running_var")}
    for half, attentions, last in (("encoder", ["self_attn"], 2), ("decoder", ["self_attn", "multihead_attn"], 3)):
        for layer in (f"transformer.{half}.layers.{i}" for i in range(6)):
            for attention in (f"{layer}.{name}" for name in attentions):
                names |= {f"{attention}.in_proj_{leaf}" for leaf in affine}
                names |= {f"{attention}.out_proj.{leaf}" for leaf in affine}
            parts = ("linear1", "linear2", *(f"norm{i}" for i in range(1, last + 1)))
            names |= {f"{layer}.{part}.{leaf}" for part in parts for leaf in affine}
    names |= {f"transformer.decoder.norm.{leaf}" for leaf in affine}
    with torch.device("meta"):
        model = build("detr_resnet50")
    assert set(model.state_dict()) == names
    assert sum(b.numel() for key, b in model.named_buffers() if key.endswith((".weight", ".bias"))) == 53_120
    assert model.state_dict()["transformer.encoder.layers.0.self_attn.in_proj_weight"].shape == (768, 256)
    assert model.state_dict()["class_embed.weight"].shape == (92, 256)


def as_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under the names of transformers (version 5)."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if ".in_proj_" in key:
            module, leaf = key.split(".in_proj_")
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{module}.{part}_proj.{leaf}"] = chunk
        else:
            renamed[key] = tensor
    rules = [
        ("backbone.0.body.conv1.", "model.backbone.model.embedder.embedder.convolution."),
        ("backbone.0.body.bn1.", "model.backbone.model.embedder.embedder.normalization."),
        *((f"backbone.0.body.layer{i + 1}.", f"model.backbone.model.encoder.stages.{i}.layers.") for i in range(4)),
        (".downsample.0.", ".shortcut.convolution."),
        (".downsample.1.", ".shortcut.normalization."),
        *((f".conv{i + 1}.", f".layer.{i}.convolution.") for i in range(3)),
        *((f".bn{i + 1}.", f".layer.{i}.normalization.") for i in range(3)),
        ("input_proj.", "model.input_projection."),
        ("query_embed.", "model.query_position_embeddings."),
        ("class_embed.", "class_labels_classifier."),
        ("bbox_embed.", "bbox_predictor."),
        ("transformer.decoder.norm.", "model.decoder.layernorm."),
        ("transformer.", "model."),
        ("out_proj.", "o_proj."),
        ("multihead_attn.", "encoder_attn."),
        (".linear1.", ".mlp.fc1."),
        (".linear2.", ".mlp.fc2."),
        (".norm1.", ".self_attn_layer_norm."),
        (".norm3.", ".final_layer_norm."),
    ]
    final: dict[str, Tensor] = {}
    for key, tensor in renamed.items():
        for old, new in rules:
            key = key.replace(old, new)
        middle = ".encoder_attn_layer_norm." if ".decoder." in key else ".final_layer_norm."
        final[key.replace(".norm2.", middle)] = tensor
    return final


def test_equal_weights_give_transformers_boxes_with_and_without_padding(timm: ModuleType) -> None:
    # Through the timm fixture, because transformers imports the torchvision that it repairs.
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    ours = build("detr_resnet50").eval()
    randomise_norms(ours)
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
        num_labels=91,
    )
    with torch.device("meta"):
        theirs = transformers.DetrForObjectDetection(config).eval()
    theirs.load_state_dict(as_transformers(ours.state_dict()), strict=True, assign=True)
    batch, mask = pad_batch([torch.randn(3, 96, 70), torch.randn(3, 65, 130)])
    with torch.no_grad():
        for arguments, expected in (
            ((batch, mask), theirs(batch, pixel_mask=(~mask).long())),
            ((batch,), theirs(batch)),
        ):
            found = ours(*arguments)
            assert relative_error(found["pred_logits"], expected.logits) < 1e-5
            assert relative_error(found["pred_boxes"], expected.pred_boxes) < 1e-5
    assert relative_error(found["pred_logits"][0], found["pred_logits"][1]) > 1e-3


def test_dilated_backbone_is_timms_at_stride_16(timm: ModuleType) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnet50", output_stride=16, zero_init_last=False).eval()
    ours = detr.Backbone(detr.CONFIGS["detr_resnet50_dc5"].backbone).body
    randomise_norms(ours)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    image = torch.randn(1, 3, 33, 64)
    with torch.no_grad():
        expected = theirs.forward_features(image)
        assert expected.shape == (1, 2048, 3, 4)
        assert relative_error(ours(image), expected) < 1e-5


def test_positions_follow_their_formula() -> None:
    valid = torch.ones(2, 3, 5, dtype=torch.bool)
    valid[1, 2:] = False
    valid[1, :, 3:] = False
    found = sine_positions(valid, 16, torch.float64).view(2, 3, 5, 16)
    for image, rows, columns in ((0, 3, 5), (1, 2, 3)):
        for y in range(rows):
            for x in range(columns):
                for half, (place, last) in enumerate(((y + 1, rows), (x + 1, columns))):
                    for channel in range(8):
                        angle = place / (last + 1e-6) * 2 * math.pi / 10000 ** (2 * (channel // 2) / 8)
                        wanted = math.cos(angle) if channel % 2 else math.sin(angle)
                        assert found[image, y, x, 8 * half + channel].item() == pytest.approx(wanted, abs=1e-12)


def test_attention_is_torchs_with_a_padding_mask() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    query, key, value = torch.randn(2, 4, 24), torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    padded = torch.tensor([[False] * 5, [False, False, True, False, True]])
    bias = torch.zeros(2, 1, 1, 5).masked_fill(padded[:, None, None], -math.inf)
    for ops in (EAGER, SDPA):
        ours = detr.Attention(ops, 24, 3)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(
            ours(query, key, value, bias), theirs(query, key, value, key_padding_mask=padded, need_weights=False)[0]
        )


def test_layers_are_torchs_when_positions_are_zero() -> None:
    torch.manual_seed(0)
    config = detr.DETRConfig(SMALL.backbone, width=24, heads=3, hidden=40, dropout=0.0)
    x, queries = torch.randn(2, 6, 24), torch.randn(2, 4, 24)
    zero = torch.zeros(1, 1, 24)
    encoder = nn.TransformerEncoderLayer(24, 3, 40, 0.0, batch_first=True)
    decoder = nn.TransformerDecoderLayer(24, 3, 40, 0.0, batch_first=True)
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        nn.init.normal_(parameter, std=0.3)
    ours = detr.EncoderLayer(EAGER, config)
    ours.load_state_dict(encoder.state_dict(), strict=True)
    torch.testing.assert_close(ours(x, zero, None), encoder(x))
    ours = detr.DecoderLayer(EAGER, config)
    ours.load_state_dict(decoder.state_dict(), strict=True)
    torch.testing.assert_close(ours(queries, zero, x, x, None), decoder(queries, x))


@pytest.mark.parametrize("ops", [EAGER, SDPA], ids=lambda ops: ops.name)
def test_equal_seeds_drop_what_torchs_layers_drop(ops: Ops) -> None:
    torch.manual_seed(0)
    config = detr.DETRConfig(SMALL.backbone, width=24, heads=3, hidden=40, dropout=0.25)
    x, queries = torch.randn(1, 6, 24), torch.randn(1, 4, 24)  # torch lays a batch out otherwise before it drops
    zero = torch.zeros(1, 1, 24)
    encoder = nn.TransformerEncoderLayer(24, 3, 40, 0.25, batch_first=True)
    decoder = nn.TransformerDecoderLayer(24, 3, 40, 0.25, batch_first=True)
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        nn.init.normal_(parameter, std=0.3)
    ours = detr.EncoderLayer(ops, config), detr.DecoderLayer(ops, config)
    for layer, theirs, arguments, given in (
        (ours[0], encoder, (x, zero, None), (x,)),
        (ours[1], decoder, (queries, zero, x, x, None), (queries, x)),
    ):
        layer.load_state_dict(theirs.state_dict(), strict=True)
        torch.manual_seed(1)
        expected = theirs(*given)
        torch.manual_seed(1)
        torch.testing.assert_close(layer(*arguments), expected)
        with without_dropout(layer):
            quiet = layer(*arguments)
        assert relative_error(quiet, expected) > 0.01
        torch.testing.assert_close(quiet, layer.eval()(*arguments), rtol=0, atol=0)


def test_attention_alone_drops_its_probabilities_in_training() -> None:
    torch.manual_seed(0)
    seen: list[float] = []

    def attention(*arguments: Tensor, dropout: float) -> Tensor:
        seen.append(dropout)
        return EAGER.attention(*arguments, dropout=dropout)

    ops = dataclasses.replace(EAGER, attention=attention)
    model = detr.DETR(ops, SMALL, 7)
    image = torch.randn(1, 3, 64, 64)
    model(image)
    model.eval()(image)
    assert seen == [0.1] * 8 + [0.0] * 8  # 2 encoder layers, and 2 attentions in each of 3 decoder layers


def test_positions_are_added_to_queries_and_keys_but_not_to_values() -> None:
    seen: list[tuple[Tensor, ...]] = []

    class Spy(nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            seen.append(arguments)
            return torch.zeros_like(arguments[0])

    config = SMALL
    x, positions = torch.randn(2, 6, 32), torch.randn(1, 6, 32)
    layer = detr.EncoderLayer(EAGER, config)
    layer.self_attn = Spy()  # type: ignore[assignment]
    layer(x, positions, None)
    assert torch.equal(seen[0][0], x + positions)
    assert torch.equal(seen[0][1], x + positions)
    assert torch.equal(seen[0][2], x)

    seen.clear()
    decoder = detr.Decoder(EAGER, config).eval()
    for block in decoder.layers:
        block.self_attn, block.multihead_attn = Spy(), Spy()
    queries = torch.randn(2, 4, 32)
    decoder(queries, x + positions, x, None)
    assert torch.equal(seen[0][0], queries), "the decoder starts from zeros"
    assert not seen[0][2].any()
    for self_seen, cross_seen in zip(seen[::2], seen[1::2], strict=True):
        torch.testing.assert_close(self_seen[0] - self_seen[2], queries)
        assert torch.equal(self_seen[0], self_seen[1])
        assert cross_seen[1:3] == (seen[1][1], seen[1][2])
    assert torch.equal(seen[1][1], x + positions)
    assert torch.equal(seen[1][2], x)


def test_padded_cells_are_no_keys_and_do_not_count_in_positions() -> None:
    model = small()
    seen: list[tuple[Tensor, ...]] = []
    model.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    model(*pad_batch([torch.randn(3, 65, 96), torch.randn(3, 128, 160)]))
    x, positions, queries, bias = seen[0]
    hidden = torch.ones(4, 5, dtype=torch.bool)
    hidden[:3, :3] = False  # row 64 of the image is the pixel that stands for the third row of cells
    assert torch.equal(bias[0, 0, 0] == -math.inf, hidden.flatten())
    assert not bias[1].any()
    alone = sine_positions(torch.ones(1, 3, 3, dtype=torch.bool), 32, torch.float32)
    torch.testing.assert_close(positions[0].view(4, 5, 32)[:3, :3], alone[0].view(3, 3, 32))
    torch.testing.assert_close(positions[1], sine_positions(torch.ones(1, 4, 5).bool(), 32, torch.float32)[0])
    other = x.clone()
    other[0, hidden.flatten()] += 5
    assert torch.equal(model.transformer(x, *seen[0][1:]), model.transformer(other, *seen[0][1:]))
    assert not torch.equal(
        model.transformer(x, positions, queries, None), model.transformer(other, positions, queries, None)
    )


def test_queries_that_change_places_take_their_boxes_along() -> None:
    model = small()
    image = torch.randn(1, 3, 64, 96)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        before = model(image)
        model.query_embed.weight.copy_(model.query_embed.weight[order])
        after = model(image)
    torch.testing.assert_close(after["pred_logits"], before["pred_logits"][:, order])
    torch.testing.assert_close(after["pred_boxes"], before["pred_boxes"][:, order])
    assert relative_error(before["pred_boxes"][:, 0], before["pred_boxes"][:, 1]) > 1e-4


def test_every_decoder_layer_speaks_through_the_same_norm_and_heads() -> None:
    model = small()
    outputs: list[Tensor] = []
    for layer in model.transformer.decoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = model(torch.randn(2, 3, 64, 96))
    assert found["pred_logits"].shape == (2, 6, 8)
    assert len(found["aux_outputs"]) == 2
    for output, layer in zip(outputs, [*found["aux_outputs"], found], strict=True):
        x = model.transformer.decoder.norm(output)
        torch.testing.assert_close(layer["pred_logits"], model.class_embed(x))
        torch.testing.assert_close(layer["pred_boxes"], model.bbox_embed(x).sigmoid())


def test_norms_stay_frozen_in_training() -> None:
    model = small().train()
    randomise_norms(model)
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    model(torch.randn(2, 3, 64, 96))["pred_boxes"].sum().backward()
    assert before
    assert all(torch.equal(buffer, before[key]) for key, buffer in model.named_buffers())
    assert {key.split(".")[3] for key, p in model.named_parameters() if p.grad is None and "backbone" in key} == {
        "conv1",
        "layer1",
    }


@pytest.mark.parametrize("size", [(1, 1), (33, 95)])
def test_any_positive_resolution_runs(size: tuple[int, int]) -> None:
    model = detr.DETR(EAGER, SMALL, 7).eval()
    assert model(torch.randn(1, 3, *size))["pred_boxes"].shape == (1, 6, 4)
    assert all(catalog()[name].resolution_multiple == 1 for name in detr.MODELS)
    with pytest.raises(ValueError, match="resolution 0x224 is not positive"):
        detr.MODELS["detr_resnet50"].build(EAGER, (0, 224), 91)


def test_random_weights_keep_activations_in_the_range_of_fp16() -> None:
    torch.manual_seed(0)
    body = detr.Backbone(detr.CONFIGS["detr_resnet101"].backbone).eval()
    with torch.no_grad():
        out = body(torch.randn(1, 3, 64, 64))
    assert 1e-3 < out.std().item() < 10


def test_padded_batches() -> None:
    images = [torch.ones(3, 2, 5), 2 * torch.ones(3, 4, 3)]
    batch, mask = pad_batch(images)
    assert batch.shape == (2, 3, 4, 5)
    for image, padded, hidden in zip(images, batch, mask, strict=True):
        height, width = image.shape[1:]
        assert torch.equal(padded[:, :height, :width], image)
        assert padded.sum() == image.sum()
        assert not hidden[:height, :width].any()
        assert (~hidden).sum() == height * width
    with pytest.raises(ValueError, match="no image"):
        pad_batch([])
