"""What the detectors share: the form of their output, their heads, and batches of images of different sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Detections(TypedDict):
    """A detector's output, in the form of the official DETR.

    pred_logits: [B, Q, classes + 1] for Q queries; the last class is "no object".
    pred_boxes: [B, Q, 4], centre x, centre y, width and height as shares of the image without its padding.
    aux_outputs: the same of each decoder layer before the last, where there are decoder layers.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    aux_outputs: NotRequired[list[Detections]]


class MLP(nn.Module):
    """Linear layers with ReLU between: [..., width] to [..., out]."""

    def __init__(self, width: int, out: int, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([*(nn.Linear(width, width) for _ in range(depth - 1)), nn.Linear(width, out)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x), inplace=True)
        return self.layers[-1](x)


def pad_batch(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One batch of images of different sizes, zeros below and to the right of the smaller ones.

    Args:
        images: each [3, h, w], of one dtype and device.

    Returns: the batch [B, 3, max h, max w] and its mask [B, max h, max w], true where there is padding.

    Raises: ValueError when there is no image.
    """
    if not images:
        raise ValueError("no image to make a batch of")
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = images[0].new_zeros(len(images), 3, height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=batch.device)
    for image, padded, hidden in zip(images, batch, mask, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
        hidden[: image.shape[1], : image.shape[2]] = False
    return batch, mask


__all__ = ["MLP", "Detections", "pad_batch"]
