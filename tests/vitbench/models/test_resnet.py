"""ResNets against the catalog, against timm, and in every way the harness runs them."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.vitbench.models.numberless import count, numberless, published, shapes
from vitbench.catalog import catalog
from vitbench.models import resnet
from vitbench.ops.bundle import EAGER

KINDS = {"basic": resnet.ResNetConfig((1, 2, 1, 1), False), "bottleneck": resnet.ResNetConfig((2, 1, 1, 1), True)}


def build(name: str) -> nn.Module:
    return resnet.MODELS[name].build(EAGER, (224, 224), 1000)


def randomise(model: nn.Module) -> None:
    """Moves every weight and running statistic away from zeros and ones, so that none can stand for another."""
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor), alpha=0.3 if tensor.ndim == 1 or "running" in key else 0.0)


def twins(timm: ModuleType, name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=1000, zero_init_last=False)
    randomise(theirs)
    ours = build(name)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def test_models_are_the_catalog_rows_in_order() -> None:
    assert list(resnet.MODELS) == [name for name, entry in catalog().items() if entry.family == "resnet"]
    assert all(resnet.MODELS[name].resolution == catalog()[name].resolution for name in resnet.MODELS)


@pytest.mark.parametrize("name", resnet.MODELS)
def test_parameters_and_macs_are_the_catalogs(name: str) -> None:
    entry = catalog()[name]
    found, given = count(name)
    assert given == [(1, 1000)]
    assert found.params_m == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)


@pytest.mark.parametrize("name", resnet.MODELS)
def test_state_dict_has_timms_names_and_shapes(name: str, timm: ModuleType) -> None:
    with numberless():
        theirs = timm.create_model(name, num_classes=1000)
    assert shapes(published(name)) == shapes(theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equal_weights_give_timms_logits(name: str, timm: ModuleType) -> None:
    ours, theirs = twins(timm, name)
    image = torch.randn(2, 3, 97, 64)
    with torch.no_grad():
        assert relative_error(ours.eval()(image), theirs.eval()(image)) < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_training_step_is_timms(name: str, timm: ModuleType) -> None:
    ours, theirs = (model.double().train() for model in twins(timm, name))
    image = torch.randn(2, 3, 64, 80, dtype=torch.float64)
    expected, actual = theirs(image), ours(image)
    assert relative_error(actual, expected) < 1e-10
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    gradients = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        gradient = gradients[key].grad
        assert parameter.grad is not None
        assert gradient is not None
        assert relative_error(gradient, parameter.grad) < 1e-8, key
    for key, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(key), buffer)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (224, 160)])
def test_any_positive_resolution_runs(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = resnet.MODELS["resnet18"].build(EAGER, size, 7).eval()
        assert model(torch.empty(2, 3, *size)).shape == (2, 7)
    assert all(catalog()[name].resolution_multiple == 1 for name in resnet.MODELS)


def test_empty_resolution_is_refused() -> None:
    with pytest.raises(ValueError, match="resolution 0x224 is not positive"):
        resnet.MODELS["resnet18"].build(EAGER, (0, 224), 10)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_deepcopy_and_compile_agree(kind: str) -> None:
    torch.manual_seed(0)
    model = resnet.ResNet(KINDS[kind], 10).eval()
    image = torch.randn(2, 3, 64, 48)
    expected = model(image)
    assert relative_error(copy.deepcopy(model)(image), expected) == 0
    assert relative_error(torch.compile(model, backend="aot_eager", fullgraph=True)(image), expected) < 1e-5
    nhwc = model.to(memory_format=torch.channels_last)
    assert relative_error(nhwc(image.to(memory_format=torch.channels_last)), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_bf16_and_near(kind: str) -> None:
    torch.manual_seed(0)
    model = resnet.ResNet(KINDS[kind], 10).eval()
    image = torch.randn(2, 3, 64, 48)
    expected = model(image)
    actual = model.to(torch.bfloat16)(image.to(torch.bfloat16))
    assert actual.dtype is torch.bfloat16
    assert relative_error(actual.float(), expected) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_trains_on_fake_tensors_in_another_default_dtype(kind: str) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode():
            model = resnet.ResNet(KINDS[kind], 10)
            logits = model(torch.empty(2, 3, 64, 48))
            logits.sum().backward()
    finally:
        torch.set_default_dtype(default)
    assert logits.dtype is torch.bfloat16
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    state = build("resnet18").state_dict()
    for key, tensor in state.items():
        if tensor.ndim == 4:
            fan_out = tensor.shape[0] * tensor.shape[2] * tensor.shape[3]
            assert tensor.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), key
        elif "bn" in key and key.endswith("weight"):
            assert (tensor == 1).all(), key


@pytest.mark.parametrize("name", resnet.MODELS)
def test_preprocessing_is_timms_for_torchvisions_weights(name: str, timm: ModuleType) -> None:
    theirs, ours = timm.get_pretrained_cfg(f"{name}.tv_in1k"), resnet.MODELS[name].preprocessing
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)
