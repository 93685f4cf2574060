"""The workloads of published memory figures, built again: one recipe for each sentence of what was run.

A recipe takes what a row of the facts states (model, image, batch, mode, precision, optimizer) and what its source says
of the code; nothing in it depends on the figure. Attention is plain products where the published code has no fused one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitbench.memory import dino
from vitbench.memory.work import Training, Work, of_images
from vitbench.models import foreign

_HALF = torch.float16


class NotRebuilt(Exception):
    """A figure's workload cannot be built here; the message says why."""


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """timm's models are built with attention as separate products."""
    layers = foreign.load("timm").layers
    before = layers.use_fused_attn()
    layers.set_fused_attn(False)
    try:
        yield
    finally:
        layers.set_fused_attn(bool(before))


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with _plain_attention():
            made: nn.Module = foreign.load("timm").create_model(name, **options)
        return made

    return build


def _images(
    row: Mapping[str, str], *more: Callable[[int], Tensor], dtype: torch.dtype = torch.float32
) -> Callable[[], tuple[Any, ...]]:
    batch, side = int(row["batch"]), int(row["image"])
    return lambda: (torch.empty(batch, 3, side, side, dtype=dtype), *(make(batch) for make in more))


def _soft_labels(classes: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.empty(batch, classes)


def _soft_cross_entropy(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The loss of training with mixed images, whose labels are distributions."""
    return torch.sum(-target * F.log_softmax(model(x), dim=-1), dim=-1).mean()


def _precision(row: Mapping[str, str]) -> dict[str, Any]:
    if row["precision"] == "apex O1":  # whose list of functions in fp32 has GELU too
        return {"autocast": _HALF, "also_fp32": ("gelu",)}
    if row["precision"] == "amp fp16":
        return {"autocast": _HALF}
    return {"dtype": _HALF} if row["precision"] == "fp16" else {}


def _swin(row: Mapping[str, str], name: str, classes: int) -> Work:
    """Swin's own training script: DistributedDataParallel, AdamW, mixed images, stochastic depth 0.2."""
    build = _timm(name, num_classes=classes, drop_path_rate=0.2)
    if row["mode"] == "infer":
        buckets: dict[str, Any] = {"beside": _buckets} if "DDP buckets" in row["notes"] else {}
        return Work(build, _images(row), of_images, no_grad=torch.no_grad, **buckets, **_precision(row))
    training = Training(optimizer="adamw-foreach", ddp=True)
    return Work(build, _images(row, _soft_labels(classes)), _soft_cross_entropy, training, **_precision(row))


def _buckets(model: nn.Module) -> dict[str, list[Tensor]]:
    parameters = list(model.parameters())
    return {"gradients": [torch.empty(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)]}


def _deit(row: Mapping[str, str]) -> Work:
    build = _timm("deit_base_patch16_224", drop_path_rate=0.1)
    training = Training(optimizer="adamw-foreach", ddp=True)
    return Work(build, _images(row, _soft_labels(1000)), _soft_cross_entropy, training, **_precision(row))


def _transformers(kind: str, attention: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = foreign.load("transformers")
        prefix = kind.partition("For")[0].replace("ImageClassification", "")
        config = getattr(library, f"{prefix}Config")(**options)
        config._attn_implementation = attention
        made: nn.Module = getattr(library, kind)(config)
        return made

    return build


def _text(row: Mapping[str, str], build: Callable[[], nn.Module]) -> Work:
    """A language model on so many tokens; its loss is the sum of the logits, as the source has it."""
    batch, tokens = int(row["batch"]), int(row["image"])

    def inputs() -> tuple[Any, ...]:
        return (torch.empty(batch, tokens, dtype=torch.long),)

    if row["mode"] == "infer":
        return Work(build, inputs, lambda model, ids: model(ids).logits, dtype=_HALF, no_grad=torch.no_grad)

    def call(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(ids).logits
        return logits.sum(), logits

    return Work(build, inputs, call, Training(optimizer="none"), dtype=_HALF)


def _pictures(row: Mapping[str, str], build: Callable[[], nn.Module], **options: Any) -> Work:
    dtype = _precision(row).get("dtype", torch.float32)
    inputs = _images(row, dtype=dtype)
    return Work(build, inputs, lambda model, x: model(x), dtype=dtype, no_grad=torch.no_grad, **options)


def _twice(model: nn.Module) -> dict[str, list[Tensor]]:
    """Another copy of the weights, where a script holds two implementations of a model."""
    return {"weights": [torch.empty_like(tensor) for tensor in (*model.parameters(), *model.buffers())]}


def work_of(row: Mapping[str, str]) -> Work:
    """The workload of a row of the facts.

    Raises: NotRebuilt saying why there is none.
    """
    name = row["model"]
    if name.startswith("swin_small"):
        return _swin(row, "swin_small_patch4_window7_224", 1000)
    if name.startswith("swin_tiny"):
        classes = 10 if "(10 " in name else 100 if "(100 " in name else 1000
        return _swin(row, "swin_tiny_patch4_window7_224", classes)
    if name.startswith("swinv2_tiny"):
        return _swin(row, "swinv2_tiny_window16_256", 100)
    if name.startswith("deit_base"):
        return _deit(row)
    if name.startswith("dino vit_small_patch"):
        patch = int(name.removeprefix("dino vit_small_patch").split()[0])
        half = row["precision"] == "fp16"
        return dino.features(
            patch, _images(row, dtype=_HALF if half else torch.float32), 4 if "last 4" in name else 0, half
        )
    if name.startswith("dino vit_small/16 student"):
        return dino.training(int(row["batch"]))
    if name in ("mobilenet_v2", "shufflenet_v2_x1_0"):
        return _pictures(row, lambda: foreign.load("torchvision").models.get_model(name, weights=None))
    if name == "resnet50":
        return _pictures(row, _timm("resnet50"))
    attention = "eager" if name.endswith("eager") else "sdpa"
    if name.startswith("bert-base"):
        return _text(row, _transformers("BertForMaskedLM", attention))
    if name.startswith("opt-350m"):
        size = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096}
        layout = {"word_embed_proj_dim": 512, "do_layer_norm_before": False}
        return _text(row, _transformers("OPTForCausalLM", attention, **size, **layout))
    if name.startswith("beit-base"):
        options = {"use_relative_position_bias": True, "use_absolute_position_embeddings": False}
        build = _transformers("BeitForImageClassification", attention, num_labels=1000, **options)
        return _pictures(row, build, beside=_twice)
    if name.startswith("vit-base"):
        return _pictures(row, _transformers("ViTForImageClassification", attention, num_labels=1000))
    raise NotRebuilt(f"no recipe for {name}")


__all__ = ["NotRebuilt", "work_of"]
