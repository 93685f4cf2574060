"""Builds models whose weights are about to be loaded without drawing random ones, which takes most of the building."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

#: What initialisation calls: a mode sees those of `init` that ask for one whole, of the others what they call.
_DRAWING = {
    Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, init.uniform_, init.normal_, init.trunc_normal_,
    init.kaiming_uniform_, init.kaiming_normal_, init.xavier_uniform_, init.xavier_normal_,
}  # fmt: skip


class Undrawn(TorchFunctionMode):
    """While it is entered, parameters stay as memory comes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
