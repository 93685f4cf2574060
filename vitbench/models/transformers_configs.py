"""Networks of transformers by the names of their published checkpoints, as configurations: no file is fetched.

Sizes are those of the checkpoints' own config.json, published by microsoft, nvidia and facebook on the model hub.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from vitbench.catalog import Resolution


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


@cache
def _logits(kind: type[nn.Module]) -> type[nn.Module]:
    """The class with logits [B, classes] as its output instead of a record that holds them; names stay the same."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return kind.forward(self, x).logits

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def build(transformers: ModuleType, name: str, resolution: Resolution, classes: int) -> nn.Module:
    """The classifier of a name in CONFIGS, randomly initialised.

    Raises: ValueError on an image that is not square where the network is made for one size.
    """
    chosen = CONFIGS[name]
    options = dict(chosen.options, num_labels=classes)
    if chosen.sized:
        if resolution[0] != resolution[1]:
            raise ValueError("the model takes square images")
        options["image_size"] = resolution[0]
    config = getattr(transformers, f"{chosen.kind}Config")(**options)
    return _logits(getattr(transformers, f"{chosen.kind}ForImageClassification"))(config)


__all__ = ["CONFIGS", "Config", "build"]
