"""Models in another form than their published one: fewer classes, stochastic depth, merged branches, checkpointing."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from vitbench.errors import Unsupported
from vitbench.models.drop_path import DropPath
from vitbench.variant import Variant


def of_ours(model: nn.Module, variant: Variant) -> nn.Module:
    """One of our own models in the form of `variant`, in place.

    Raises: Unsupported where the model has no such form.
    """
    if variant.reparam:
        raise Unsupported("--reparam: no branch of it can be merged")
    if variant.checkpointing:
        raise Unsupported("--checkpointing: it has no gradient checkpointing; timm's and transformers' models have")
    if variant.drop_path is not None:
        paths = [module for module in model.modules() if isinstance(module, DropPath)]
        if not paths:
            raise Unsupported("--drop-path: it has no stochastic depth")
        for index, path in enumerate(paths):  # rising from block to block, as the families train
            path.drop_prob = variant.drop_path * index / max(1, len(paths) - 1)
    return model


def of_theirs(model: nn.Module, variant: Variant) -> nn.Module:
    """A model of another library with merged branches or gradient checkpointing, where `variant` asks for them.

    Raises: Unsupported where the model has no such form.
    """
    if variant.reparam:
        from timm.utils.model import reparameterize_model

        before = _kinds(model)
        model = reparameterize_model(model, inplace=True)
        if _kinds(model) == before:
            raise Unsupported("--reparam: no branch of it can be merged")
    if variant.checkpointing:
        turn_on: Any = getattr(model, "set_grad_checkpointing", None)  # timm's
        if turn_on is None and getattr(model, "supports_gradient_checkpointing", False):
            turn_on = cast(Any, model).gradient_checkpointing_enable  # transformers'
        if turn_on is None:
            raise Unsupported("--checkpointing: it has no gradient checkpointing")
        try:
            turn_on()
        except AssertionError as error:  # timm's word for a model without
            raise Unsupported(f"--checkpointing: {error}") from error
    return model


def _kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    """Every module's class, by name: a norm that was merged is an identity, of the same name in some models."""
    return {name: type(module) for name, module in model.named_modules()}
