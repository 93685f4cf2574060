"""Random weights under which an output shows what any part of the network does.

As initialised, some networks hide their parts: a residual branch whose last scale is zero, a table or a bias of
zeros and a scale of ones that could as well be left out, activations that shrink from layer to layer where
normalisation still has the statistics 0 and 1. An implementation could be wrong there and agree all the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vitbench.catalog import Resolution
from vitbench.errors import InputError

#: Standard deviation of what is added to a tensor that is constant.
SPREAD = 0.1
#: Of the mean of a norm's variances, the least that one channel keeps: one that hardly varied must not explode later.
_LEAST_VARIANCE = 0.01

Norm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def enliven(model: nn.Module, images: Tensor, seed: int = 0) -> None:
    """Changes a randomly initialised model in place, the same way whatever implementation it has.

    Every parameter and buffer whose elements are all equal gets normal noise of standard deviation SPREAD; then every
    BatchNorm gets the statistics of `images`, as training would give it.

    Args:
        images: [B, 3, H, W] with B >= 2, which the model takes.
    """
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.min() == tensor.max():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=SPREAD)
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    if not norms:
        return
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, of which there is one
        norm.train()
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:
            norm.running_var.clamp_(min=_LEAST_VARIANCE * norm.running_var.mean().item())
    model.train()


__all__ = ["SPREAD", "enliven"]


def load_weights(model: nn.Module, name: str, path: Path, source: Resolution | None = None) -> None:
    """Loads a .safetensors file strictly, resampling what depends on the resolution.

    Args:
        source: (height, width) that the file was saved at; by default told from the sizes of its tables, which a
            file that was saved at another one than the published and is not square does not tell.

    Raises: InputError when the file is missing, not safetensors, or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"weights file {path} does not exist") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable .safetensors file ({error})") from error
    resize = getattr(model, "resize_state_dict", None)
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise InputError(
            f"{path} is not {name}: {len(missing)} tensors missing{_example(missing)}, "
            f"{len(extra)} unknown{_example(extra)}"
        )
    if resize is not None:
        try:
            state = resize(state, source)
        except ValueError as error:
            hint = "" if source else "; if it was saved at another size, name that: --weights-resolution HEIGHTxWIDTH"
            raise InputError(f"{path} does not fit {name}: {error}{hint}") from error
    elif source is not None:
        raise InputError(f"nothing in {name} depends on the resolution: leave --weights-resolution out")
    for key, tensor in own.items():
        if state[key].shape != tensor.shape:
            raise InputError(f"{path} is not {name}: {key} is {list(state[key].shape)}, needs {list(tensor.shape)}")
    model.load_state_dict(state, strict=True)


def _example(keys: list[str]) -> str:
    return f" (such as {keys[0]})" if keys else ""
