"""Models of timm, torchvision and transformers by name, such as `timm:convnext_tiny`: at random weights, no network.

Their code is theirs: "eager" is the model as its library makes it, torch's fused attention included where the library
uses it, and "fused" is the same model after `vitkernels.fuse`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import filter as matching
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

from vitbench.catalog import CatalogEntry, Resolution
from vitbench.errors import InputError, Unsupported, nearest
from vitbench.models import transformers_configs, variants
from vitbench.models.spec import ModelSpec, Preprocessing
from vitbench.ops.bundle import Ops
from vitbench.variant import PUBLISHED, Variant

_CLASSES = 1000
#: Implementations that one model of another library can have.
IMPLS = ("eager", "compile", "max-autotune", "fused", "fused+compile")


@cache
def load(package: str) -> ModuleType:
    """The package, imported.

    Raises: InputError when it is not installed or cannot be imported.
    """
    _mend_torchvision()
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(
            f"models named {package}:... need the package {error.name}, which is not installed; `pip install {package}`"
        ) from error
    except RuntimeError as error:
        raise InputError(f"the package {package} cannot be imported: {error}") from error


_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")


@cache
def _mend_torchvision() -> None:
    """Makes torchvision importable, which timm imports at once and transformers with the first image model.

    Beside another build of torch than its own it lacks its C++ operators and fails over their missing schemas. No
    classifier runs them.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        pass
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            return  # whoever imports it will say so
        for operator in ("nms", "qnms"):
            _TORCHVISION.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@dataclass(frozen=True)
class Library:
    """How a package names, describes and builds classifiers that give logits [B, classes]."""

    names: Callable[[], list[str]]
    describe: Callable[[str], tuple[Resolution, Preprocessing]]
    build: Callable[[str, Resolution, int, Variant], nn.Module]


def _timm_describe(name: str) -> tuple[Resolution, Preprocessing]:
    config = load("timm").models.get_pretrained_cfg(name)
    (_, height, width) = config.input_size
    how = Preprocessing(tuple(config.mean), tuple(config.std), config.crop_pct or 0.875, config.interpolation)
    return (height, width), how


def _timm_build(name: str, resolution: Resolution, classes: int, variant: Variant) -> nn.Module:
    depth = {} if variant.drop_path is None else {"drop_path_rate": variant.drop_path}
    try:
        return _timm_create(name, resolution, dict(depth, num_classes=classes))
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise Unsupported("--drop-path: it has no stochastic depth") from error


def _timm_create(name: str, resolution: Resolution, options: dict[str, Any]) -> nn.Module:
    create = load("timm").create_model
    if resolution != _timm_describe(name)[0]:
        try:
            built: nn.Module = create(name, **options, img_size=resolution)
        except TypeError as error:  # a network without a size of its own takes any
            if "img_size" not in str(error):
                raise
        else:
            return built
    return create(name, **options)


#: Of torchvision: in training these two give their auxiliary classifiers' logits too.
_NOT_LOGITS = ("googlenet", "inception_v3")


def _torchvision_describe(name: str) -> tuple[Resolution, Preprocessing]:
    how = load("torchvision").models.get_model_weights(name).DEFAULT.transforms()
    (side,) = how.crop_size
    crop_pct = side / how.resize_size[0]
    return (side, side), Preprocessing(tuple(how.mean), tuple(how.std), crop_pct, how.interpolation.value)


def _torchvision_build(name: str, resolution: Resolution, classes: int, variant: Variant) -> nn.Module:
    models = load("torchvision").models
    sized: dict[str, Any] = {}
    if name.startswith("maxvit"):
        sized["input_size"] = resolution
    elif name.startswith("vit"):
        if resolution[0] != resolution[1]:
            raise ValueError("the model takes square images")
        sized["image_size"] = resolution[0]
    if variant.drop_path is not None:
        sized["stochastic_depth_prob"] = variant.drop_path
    try:
        return models.get_model(name, weights=None, num_classes=classes, **sized)
    except TypeError as error:
        if "stochastic_depth_prob" not in str(error):
            raise
        raise Unsupported("--drop-path: it has no stochastic depth") from error


def _torchvision_names() -> list[str]:
    models = load("torchvision").models
    return [name for name in models.list_models(module=models) if name not in _NOT_LOGITS]


def _transformers_describe(name: str) -> tuple[Resolution, Preprocessing]:
    return transformers_configs.native(load("transformers"), name), Preprocessing()


LIBRARIES = {
    "timm": Library(lambda: list(load("timm").list_models()), _timm_describe, _timm_build),
    "torchvision": Library(_torchvision_names, _torchvision_describe, _torchvision_build),
    "transformers": Library(
        lambda: transformers_configs.names(load("transformers")),
        _transformers_describe,
        lambda name, resolution, classes, variant: transformers_configs.build(
            load("transformers"), name, resolution, classes, variant
        ),
    ),
}


def is_foreign(name: str) -> bool:
    return ":" in name


def _split(name: str) -> tuple[str, str]:
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        raise InputError(f"unknown library {library!r} in {name!r}: {nearest(library, LIBRARIES)}")
    return library, rest


def _family(name: str) -> str:
    return re.split(r"[-_*?\[]", name)[0]


def match(pattern: str) -> list[str]:
    """The full names of the models that `LIBRARY:NAME` means, where NAME may have wildcards.

    Raises: InputError when the library is unknown or not installed, or nothing matches; it names the nearest.
    """
    library, wanted = _split(pattern)
    names = LIBRARIES[library].names()
    found = [wanted] if wanted in names else matching(names, wanted)
    if not found and library == "timm" and wanted.partition(".")[0] in names:
        found = [wanted]  # a pretrained tag, whose configuration may have another resolution
    if not found:
        hint = nearest(wanted, [name for name in names if name.startswith(wanted)] or names)
        if hint.startswith("`vitbench list`"):  # as of swinn*: names of families may be near
            hint = nearest(_family(wanted), dict.fromkeys(f"{_family(name)}*" for name in names))
        if hint.startswith("`vitbench list`"):
            hint = f"{library} has {len(names)} models, such as {names[0]}"
        raise InputError(f"unknown model {pattern!r}: {hint}")
    return [f"{library}:{name}" for name in found]


@cache
def entry(name: str) -> CatalogEntry:
    """What is known of a model before it is built; parameters and MACs are counted, never looked up.

    Raises: InputError as `match`.
    """
    (full,) = match(name)
    library, own = _split(full)
    return CatalogEntry(
        model=full,
        family=library,
        params_m=None,
        gmacs=None,
        resolution=LIBRARIES[library].describe(own)[0],
        top1=None,
        coco_ap=None,
        training_data="",
        source=f"{library} {importlib.metadata.version(library)}",
        resolution_multiple=1,
    )


@cache
def spec(name: str, variant: Variant = PUBLISHED) -> ModelSpec:
    """Builder and preprocessing of a model; what it builds lies on the CPU, whatever the default device.

    Raises: InputError as `match`; from the builder ValueError when the model cannot be made at a resolution.
    """
    library, own = _split(entry(name).model)
    resolution, how = LIBRARIES[library].describe(own)

    def build(ops: Ops, resolution: Resolution, classes: int) -> nn.Module:
        try:
            with torch.device("cpu"):  # not every constructor works without data
                model = variants.of_theirs(LIBRARIES[library].build(own, resolution, classes, variant), variant)
        except (AssertionError, RuntimeError, TypeError) as error:
            raise ValueError(str(error)) from error
        if ops.name == "fused":
            import vitkernels

            vitkernels.fuse(model)
        return model

    return ModelSpec(build, resolution, how, variant.num_classes or _CLASSES)


@cache
def unserved(name: str, impl: str, resolution: Resolution | None = None, variant: Variant = PUBLISHED) -> str | None:
    """Why a model has no implementation `impl`; None where it has one. `fuse` must swap something to be one.

    Raises: ValueError when the model cannot be made at the resolution.
    """
    if impl not in IMPLS:
        return f"{name.partition(':')[0]} chooses its own attention; its models have {', '.join(IMPLS)}"
    if not impl.startswith("fused"):
        return None
    import vitkernels

    from vitbench.ops.bundle import EAGER

    made = spec(name, variant)
    report = vitkernels.fuse(made.build(EAGER, resolution or made.resolution, made.num_classes))
    if report.swapped:
        return None
    left = "; ".join(f"{text} ({count} modules)" for text, count in Counter(one.text for one in report.left).items())
    return f"vitkernels.fuse finds no module in it that a kernel computes{': ' + left if left else ''}"


def swapped(model: nn.Module) -> str:
    """What `vitkernels.fuse` has swapped in a model, such as "fuse swapped 12 WindowAttention"; "" for nothing."""
    kinds = Counter(kind.__name__ for m in model.modules() if (kind := getattr(type(m), "fused_from", None)))
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"fuse swapped {told}" if told else ""


__all__ = ["IMPLS", "LIBRARIES", "entry", "is_foreign", "load", "match", "spec", "swapped", "unserved"]
