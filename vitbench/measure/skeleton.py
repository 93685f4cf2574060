"""A model without its data: the same modules around other tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def replace_tensors(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `model` in which every tensor t (parameter, buffer or plain attribute of a module) is make(t).

    A tensor that is used twice is replaced once. `model` is left as it is, and none of its data is copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(make(parameter), parameter.requires_grad)
        for value in (*module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor) and id(value) not in memo:
                memo[id(value)] = make(value)
    return copy.deepcopy(model, memo)
