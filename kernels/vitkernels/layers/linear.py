"""Linear layers that share an input, as one matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkernels.layers.derived import derived, is_frozen
from vitkernels.layers.folding import compute_dtype


def packed_linear(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """layer(x) for each of the layers; where the first is frozen as one matrix product, each result a part of it."""
    if not is_frozen(layers[0]):  # packing takes as long as it saves
        return tuple(layer(x) for layer in layers)
    count, dtype = len(layers), compute_dtype(x)

    def make(*sources: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight = torch.cat([w.to(dtype) for w in sources[:count] if w is not None])
        if all(b is None for b in sources[count:]):
            return weight, None
        parts = zip(layers, sources[count:], strict=True)
        return weight, torch.cat([weight.new_zeros(n.out_features) if b is None else b.to(dtype) for n, b in parts])

    sources = (*(layer.weight for layer in layers), *(layer.bias for layer in layers))
    weight, bias = derived(layers[0], "packed", make, *sources, key=(dtype, *map(id, layers)))
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)
