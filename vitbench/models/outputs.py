"""What the harness does with a model's output, by its form: a loss to train on, tensors to compare.

Three forms are known: logits [B, classes], one logit [B, 1], and a detector's `Detections`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vitbench.errors import Unsupported

if TYPE_CHECKING:
    from vitbench.models.detection import Detections

Output = Tensor | Mapping[str, object] | list[Tensor]

#: Weight of the boxes' part of a detector's loss, DETR's for its L1 distance.
BOX_WEIGHT = 5.0
#: Every coordinate of every box that a detector is trained towards: away from the sigmoid's middle, where random
#: weights start, so that the gradient is not only rounding.
BOX_TARGET = 0.25


def tensors(output: Output) -> Iterator[Tensor]:
    """Every floating-point tensor of an output, in an order that its form fixes."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from tensors(cast(Output, part))
    elif isinstance(output, list):
        for part in output:
            yield from tensors(part)
    else:
        raise TypeError(f"an output is made of tensors, dictionaries and lists, not of {type(output).__name__}")


def smallest_norm(output: Tensor) -> float:
    """What an error in a tensor of an output is measured against at least: that of logits of 1 where there is
    one logit [B, 1], which alone may be zero by chance, else nothing."""
    return output.numel() ** 0.5 if output.ndim == 2 and output.shape[1] == 1 else 0.0


def classes(output: Output) -> int:
    """How many labels `loss` can be given: the last axis of the logits, or two where there is one logit."""
    return max(2, next(tensors(output)).shape[-1])


def loss(output: Output, labels: Tensor) -> Tensor:
    """The scalar that a training benchmark minimises, fp32 or better; `labels`: [B], integers below `classes(output)`.

    - Logits: cross entropy.
    - One logit: binary cross entropy.
    - Detections: every query is to say the image's label and one fixed box: cross entropy plus BOX_WEIGHT times
      the squared distance of the boxes, averaged over images and queries, and summed over the layers that
      say something, as DETR's auxiliary losses are. Not the published loss: matching queries to objects
      is done by the CPU and costs what the pictures hold, which is no property of the model. Squared, because the
      gradient of a plain distance jumps, so that rounding alone would make implementations differ.

    Raises: Unsupported for a tensor that is no logits, such as an encoder's features [B, tokens, D].
    """
    if isinstance(output, Tensor):
        if output.ndim != 2:
            shape = ", ".join(map(str, ("batch", *output.shape[1:])))
            raise Unsupported(f"nothing to train on: gives [{shape}], where logits are [batch, classes]")
        logits = _widened(output)
        if logits.shape[-1] == 1:
            return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)
    found = cast("Detections", output)
    layers = [found, *found.get("aux_outputs", [])]
    return torch.stack([_detection_loss(layer, labels) for layer in layers]).sum()


def _detection_loss(found: Detections, labels: Tensor) -> Tensor:
    logits, boxes = _widened(found["pred_logits"]), _widened(found["pred_boxes"])
    of_query = labels[:, None].expand(logits.shape[:2])
    distance = (boxes - BOX_TARGET).square().sum(dim=-1).mean()
    return F.cross_entropy(logits.flatten(0, 1), of_query.flatten()) + BOX_WEIGHT * distance


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


__all__ = ["BOX_TARGET", "BOX_WEIGHT", "Output", "classes", "loss", "smallest_norm", "tensors"]
