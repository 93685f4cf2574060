"""EfficientNet against the catalog and against timm."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.vitbench.models.numberless import count, numberless, published, shapes
from vitbench.catalog import catalog
from vitbench.models import efficientnet
from vitbench.models.drop_path import DropPath
from vitbench.ops.bundle import EAGER
from vitbench.verify.outcome import without_dropout

_FIRST, _SECOND = efficientnet.STAGES[:2]
SMALL = efficientnet.EfficientNetConfig(1.0, 1.0, dropout=0.2, stages=(_FIRST, dataclasses.replace(_SECOND, kernel=5)))


def build(name: str) -> nn.Module:
    return efficientnet.MODELS[name].build(EAGER, (224, 224), 1000)


def randomise(model: nn.Module) -> None:
    """Moves weights and biases away from ones and zeros and gives norms the statistics of noise, as training would:
    without, activations die out on their way and the logits no longer depend on the image."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1 and "running" not in key:
            tensor.add_(torch.rand_like(tensor), alpha=0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 32, 32))


def twins(timm: ModuleType, name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = timm.create_model(name)
    randomise(theirs)
    with torch.device("meta"):
        ours = build(name)
    state = {key: tensor.clone() for key, tensor in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True, assign=True)
    return ours, theirs


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def test_models_are_the_catalog_rows_in_order() -> None:
    assert list(efficientnet.MODELS) == [name for name, entry in catalog().items() if entry.family == "efficientnet"]
    assert all(spec.resolution == catalog()[name].resolution for name, spec in efficientnet.MODELS.items())


@pytest.mark.parametrize("name", efficientnet.MODELS)
def test_parameters_and_macs_are_the_catalogs(name: str) -> None:
    entry = catalog()[name]
    found, _ = count(name)
    assert round(found.params_m, 6) == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)


@pytest.mark.parametrize("name", efficientnet.MODELS)
def test_state_dict_has_timms_names_and_shapes(name: str, timm: ModuleType) -> None:
    with numberless():
        theirs = timm.create_model(name)
    assert shapes(published(name)) == shapes(theirs)


@pytest.mark.parametrize(("name", "size"), [("efficientnet_b0", (65, 48)), ("efficientnet_b3", (48, 33))])
def test_equal_weights_give_timms_logits(name: str, size: tuple[int, int], timm: ModuleType) -> None:
    ours, theirs = (model.eval() for model in twins(timm, name))
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs(image)
        assert relative_error(ours(image), expected) < 1e-5
        assert relative_error(expected[0], expected[1]) > 1e-2, "the logits hardly depend on the image"


def test_training_step_is_timms(timm: ModuleType) -> None:
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    torch.manual_seed(0)
    blocks = decode_arch_def([["ds_r1_k3_s1_e1_c16_se0.25"], ["ir_r2_k5_s2_e6_c24_se0.25"]])
    theirs = EfficientNet(blocks, num_classes=10, stem_size=32, act_layer=nn.SiLU).double().train()
    ours = efficientnet.EfficientNet(EAGER, SMALL, 10).double().train()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image, weights = torch.randn(4, 3, 16, 20).double(), torch.randn(4, 10).double()
    with without_dropout(ours):
        (ours(image) * weights).sum().backward()
    (theirs(image) * weights).sum().backward()
    expected = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert expected[key].grad is not None
        assert relative_error(parameter.grad, expected[key].grad) < 1e-6, key
    for key, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(key), buffer)


def test_stochastic_depth_and_dropout_are_timms(timm: ModuleType) -> None:
    ours = published("efficientnet_b1")
    with numberless():
        theirs = timm.create_model("efficientnet_b1", drop_path_rate=0.2)
    rates = {name: module.drop_prob for name, module in ours.named_modules() if isinstance(module, DropPath)}
    expected = {name: getattr(m, "drop_prob", 0.0) for name, m in theirs.named_modules() if name.endswith("drop_path")}
    assert rates == pytest.approx(expected)
    assert len(rates) == 23
    assert [config.dropout for config, *_ in efficientnet.CONFIGS.values()] == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]


def test_a_dropped_block_is_its_shortcut_and_only_in_training() -> None:
    torch.manual_seed(0)
    stage = efficientnet.Stage(1, 3, 1, 6, 8)
    block = efficientnet.MBConv(EAGER, efficientnet.TIMM, 8, stage, drop_path=1 - 1e-9)
    x = torch.randn(4, 8, 5, 5)
    assert torch.equal(block.train()(x), x)
    assert not torch.allclose(block.eval()(x), x)
    strided = efficientnet.MBConv(
        EAGER, efficientnet.TIMM, 8, efficientnet.Stage(1, 3, 2, 6, 8), drop_path=1 - 1e-9
    ).train()
    assert strided(x).abs().sum() > 0, "a block without a shortcut cannot be dropped"


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (300, 224)])
def test_any_positive_resolution_runs(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = efficientnet.MODELS["efficientnet_b0"].build(EAGER, size, 7).eval()
        assert model(torch.empty(2, 3, *size)).shape == (2, 7)
    assert all(catalog()[name].resolution_multiple == 1 for name in efficientnet.MODELS)
    with pytest.raises(ValueError, match="resolution 0x224 is not positive"):
        efficientnet.MODELS["efficientnet_b0"].build(EAGER, (0, 224), 10)


def test_initialisation_is_the_references() -> None:
    torch.manual_seed(0)
    for key, tensor in build("efficientnet_b0").state_dict().items():
        if tensor.ndim == 4 and tensor.numel() > 2000:
            depthwise = tensor.shape[1] == 1
            fan_out = tensor[0, 0].numel() * (1 if depthwise else tensor.shape[0])
            assert tensor.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1), key
        elif key == "classifier.weight":
            assert tensor.abs().max().item() == pytest.approx(1000**-0.5, rel=0.01)
        elif key.endswith("bias"):
            assert not tensor.any(), key


@pytest.mark.parametrize("name", efficientnet.MODELS)
def test_preprocessing_is_that_of_the_weights_whose_accuracy_is_listed(name: str, timm: ModuleType) -> None:
    theirs, ours = timm.get_pretrained_cfg(f"tf_{name}.aa_in1k"), efficientnet.MODELS[name].preprocessing
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)
    assert theirs.input_size[1:] == efficientnet.MODELS[name].resolution
