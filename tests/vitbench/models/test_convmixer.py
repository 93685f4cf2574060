"""ConvMixer against the catalog and against timm."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.vitbench.models.numberless import count, numberless, published, shapes
from vitbench.catalog import catalog
from vitbench.models import convmixer
from vitbench.models.weights import enliven
from vitbench.ops.bundle import EAGER

SMALL = convmixer.ConvMixerConfig(16, 2, kernel=5, patch=4, activation="relu")


def build(name: str) -> nn.Module:
    return convmixer.MODELS[name].build(EAGER, (224, 224), 1000)


def randomise(model: nn.Module) -> None:
    """Moves every norm away from zeros and ones, so that none can stand for another."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.rand_like(tensor), alpha=0.5 if key.endswith("running_var") else 0.2)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def test_models_are_the_catalog_rows_in_order() -> None:
    assert list(convmixer.MODELS) == [name for name, entry in catalog().items() if entry.family == "convmixer"]
    assert all(spec.resolution == catalog()[name].resolution for name, spec in convmixer.MODELS.items())


@pytest.mark.parametrize("name", convmixer.MODELS)
def test_parameters_and_macs_are_the_catalogs(name: str) -> None:
    entry = catalog()[name]
    found, _ = count(name)
    assert round(found.params_m, 6) == entry.params_m
    assert found.gmacs == pytest.approx(entry.gmacs, abs=6e-5)


@pytest.mark.parametrize("name", convmixer.MODELS)
def test_state_dict_has_timms_names_and_shapes(name: str, timm: ModuleType) -> None:
    with numberless():
        theirs = timm.create_model(name)
    assert shapes(published(name)) == shapes(theirs)


@pytest.mark.parametrize(
    ("name", "size"),
    [("convmixer_768_32", (35, 28)), ("convmixer_1024_20_ks9_p14", (28, 70))],  # ReLU, GELU
)
def test_equal_weights_give_timms_logits(name: str, size: tuple[int, int], timm: ModuleType) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name)
    image = torch.randn(2, 3, *size)
    enliven(theirs, image)
    with torch.device("meta"):
        ours = build(name).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    with torch.no_grad():
        found = ours(image)
        assert relative_error(found, theirs.eval()(image)) < 1e-5
    assert relative_error(found[:1], found[1:]) > 0.1


def test_training_step_is_timms(timm: ModuleType) -> None:
    from timm.models.convmixer import ConvMixer

    torch.manual_seed(0)
    theirs = ConvMixer(16, 2, kernel_size=5, patch_size=4, num_classes=10, act_layer=nn.ReLU).double()
    randomise(theirs)
    ours = convmixer.ConvMixer(EAGER, SMALL, 10).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image, weights = torch.randn(3, 3, 24, 20).double(), torch.randn(3, 10).double()
    for model in (ours, theirs):
        (model(image) * weights).sum().backward()
    for (key, actual), (_, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert actual.grad is not None
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-7, atol=1e-10, msg=key)
    for key, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(key), buffer)


def test_only_whole_patches_are_taken() -> None:
    for name, spec in convmixer.MODELS.items():
        patch = catalog()[name].resolution_multiple
        assert patch == convmixer.CONFIGS[name].patch
        with pytest.raises(ValueError, match=rf"{patch}x{patch + 1} is not a positive multiple of {patch} px"):
            spec.build(EAGER, (patch, patch + 1), 10)


@pytest.mark.parametrize("name", convmixer.MODELS)
def test_preprocessing_is_timms(name: str, timm: ModuleType) -> None:
    theirs, ours = timm.get_pretrained_cfg(name), convmixer.MODELS[name].preprocessing
    assert (theirs.mean, theirs.std) == (ours.mean, ours.std)
    assert (theirs.crop_pct, theirs.interpolation) == (ours.crop_pct, ours.interpolation)
