"""Networks of transformers as configurations, by the names of published checkpoints or of classes: nothing is fetched.

A class such as Dinov2ForImageClassification is built from its default configuration, or from a JSON file in the form of
the hub's config.json. Classes that classify give their logits, vision encoders their pooled features.

Sizes are those of the checkpoints' own config.json, published by microsoft, nvidia and facebook on the model hub.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from vitbench.catalog import Resolution
from vitbench.errors import InputError, Unsupported
from vitbench.variant import Variant


@dataclass(frozen=True)
class Config:
    """The class prefix in transformers, and what differs from its default configuration; `sized`: knows its px."""

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    sized: bool = True


def _swin(width: int, third: int, heads: int) -> Config:
    return Config(
        "Swin",
        {"embed_dim": width, "depths": [2, 2, third, 2], "num_heads": [heads, 2 * heads, 4 * heads, 8 * heads]},
    )


def _segformer(width: int, depths: tuple[int, ...]) -> Config:
    return Config("Segformer", {"hidden_sizes": [width, 2 * width, 5 * width, 8 * width], "depths": [*depths]}, False)


_BEIT = {"use_relative_position_bias": True, "use_absolute_position_embeddings": False}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
CONFIGS = {
    "swin-tiny-patch4-window7-224": _swin(96, 6, 3),
    "swin-small-patch4-window7-224": _swin(96, 18, 3),
    "swin-base-patch4-window7-224": _swin(128, 18, 4),
    "segformer-b0": _segformer(32, (2, 2, 2, 2)),
    "segformer-b1": _segformer(64, (2, 2, 2, 2)),
    "segformer-b2": _segformer(64, (3, 4, 6, 3)),
    "segformer-b3": _segformer(64, (3, 4, 18, 3)),
    "beit-base-patch16-224": Config("Beit", _BEIT),
    "beit-large-patch16-224": Config("Beit", _BEIT | _LARGE),
    "convnext-tiny-224": Config("ConvNext", sized=False),
    "vit-base-patch16-224": Config("ViT"),
}


#: How the names of classes end that take images alone.
_ENDINGS = ("ForImageClassification", "VisionModel")


def names(transformers: ModuleType) -> list[str]:
    """The checkpoints of CONFIGS, then every class of the installed version that makes logits or features of images.

    But those that only choose another class by its configuration (AutoModelForImageClassification).
    """
    found = (name for name in dir(transformers) if name.endswith(_ENDINGS) and not name.startswith("Auto"))
    return [*CONFIGS, *sorted(found)]


@cache
def _logits(kind: type[nn.Module]) -> type[nn.Module]:
    """The class with logits or features [B, classes] as its output instead of a record; names stay the same."""

    def forward(self: Any, x: Tensor) -> Tensor:
        out = kind.forward(self, pixel_values=x)
        if getattr(out, "logits", None) is not None:
            return out.logits
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state.flatten(1, -2).mean(1) if pooled is None else pooled.flatten(1)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _class_of(transformers: ModuleType, name: str) -> Any:
    """Raises: Unsupported where the class cannot be imported here, or takes more than images."""
    try:
        kind = getattr(transformers, f"{CONFIGS[name].kind}ForImageClassification" if name in CONFIGS else name)
    except (ImportError, RuntimeError) as error:
        raise Unsupported(f"{name} cannot be imported: {str(error).strip().splitlines()[0]}") from error
    takes = inspect.signature(kind.forward).parameters.values()
    more = [p.name for p in takes if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    more = [given for given in more if given != "pixel_values"]
    if more or "pixel_values" not in [p.name for p in takes]:
        raise Unsupported(f"{name} takes more than images: {', '.join(more) or 'no pixel_values'}")
    return kind


def _configuration(transformers: ModuleType, name: str, path: str = "") -> Any:
    """The class' own configuration, that of a checkpoint, or a file's.

    Raises: InputError when the file is of another kind of model.
    """
    kind = _class_of(transformers, name).config_class
    if path:
        given = read(Path(path))
        if given.get("model_type", kind.model_type) != kind.model_type:
            raise InputError(f"{path} has model_type {given['model_type']!r}; {name} is a {kind.model_type!r}")
        return kind.from_dict(given)
    return kind(**CONFIGS[name].options) if name in CONFIGS else kind()


def read(path: Path) -> dict[str, Any]:
    """A configuration as the hub keeps it.

    Raises: InputError when the file is missing or no JSON object.
    """
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"--config {path} cannot be read as JSON: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"--config {path} should be a JSON object such as the hub's config.json")
    return given


def _sized(config: Any) -> Any:
    """The part of a configuration that knows the image."""
    return getattr(config, "vision_config", None) or config


def native(transformers: ModuleType, name: str, path: str = "") -> Resolution:
    """The size of a configuration's images; 224 x 224 where it knows none, or the class cannot be made."""
    try:
        size = getattr(_sized(_configuration(transformers, name, path)), "image_size", None) or 224
    except Unsupported:
        size = 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return height, width


def build(transformers: ModuleType, name: str, resolution: Resolution, classes: int, variant: Variant) -> nn.Module:
    """The network of a name in CONFIGS or of a class, randomly initialised.

    Raises: ValueError on an image that is not square where the network is made for one size; Unsupported where the
        class takes more than images or has no stochastic depth.
    """
    kind = _class_of(transformers, name)
    config = _configuration(transformers, name, variant.config)
    if not variant.config or variant.num_classes is not None:
        config.num_labels = classes
    sized = _sized(config)
    size = getattr(sized, "image_size", None)
    if size is not None and (name not in CONFIGS or CONFIGS[name].sized):
        if isinstance(size, int):
            if resolution[0] != resolution[1]:
                raise ValueError("the model takes square images")
            sized.image_size = resolution[0]
        else:
            sized.image_size = type(size)(resolution)
    if variant.drop_path is not None:
        if not hasattr(sized, "drop_path_rate"):
            raise Unsupported("--drop-path: it has no stochastic depth")
        rate = sized.drop_path_rate
        sized.drop_path_rate = variant.drop_path if isinstance(rate, (int, float)) else [variant.drop_path] * len(rate)
    return _logits(kind)(config)


__all__ = ["CONFIGS", "Config", "build", "names", "native", "read"]
