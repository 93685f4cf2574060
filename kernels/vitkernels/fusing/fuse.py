"""Fused kernels in models of timm, torchvision and transformers: `fuse(model)`, and `unfuse(model)` takes it back.

A module that a kernel serves gets a subclass of its own class whose forward calls the kernel; nothing else about it
changes, and nothing about its library: names, parameters, buffers and state_dict are the very same objects,
`isinstance` still holds, and setting the class back undoes it. Copies and pickles of a fused model are fused.

Served are classes by name, as timm 1.0.15 and transformers 5.9 and later have them. Those of another structure, and
those whose shapes or settings are not what a kernel computes, are left and the report says why. Every depthwise
convolution of torch's own that the kernel can compute is served too, which is what ConvNeXt and the feed-forward layers
of PVT-v2 and SegFormer need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitkernels.depthwise.conv import depthwise_conv2d
from vitkernels.fusing import timm, torchvision, transformers
from vitkernels.fusing.rules import Rule, grouped_by_channel, is_conv2d, plain, refuse_version
from vitkernels.layers.convolution import is_depthwise, padding_of
from vitkernels.layers.derived import freeze, refresh, thaw
from vitkernels.layers.folding import compute_dtype
from vitkernels.runtime.device import kernels_run_on


@dataclass(frozen=True)
class Fused:
    """One module: its name, its own class, and what the kernels compute of it (swapped) or why they do not (left)."""

    name: str
    class_name: str
    text: str


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` did: the modules that run on kernels now, and those that might have and do not."""

    swapped: tuple[Fused, ...]
    left: tuple[Fused, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} modules run on fused kernels, {len(self.left)} were left as they are"]
        lines += [f"  + {one.name} ({one.class_name}): {one.text}" for one in self.swapped]
        lines += [f"  - {one.name} ({one.class_name}): {one.text}" for one in self.left]
        return "\n".join(lines)


def _refuse_conv(conv: Any) -> str | None:
    return (
        None
        if is_depthwise(conv)
        else "the kernel takes square filters of 2 to 9, undilated and padded alike with zeros"
    )


def _conv(self: Any, input: Tensor) -> Tensor:
    if input.dim() != 4:
        return cast(Tensor, plain(self, input))
    dtype = compute_dtype(input)
    return depthwise_conv2d(input.to(dtype), self.weight.to(dtype), self.bias, self.stride[0], padding_of(self))


_CONV = Rule(
    "torch.nn.modules.conv:Conv2d", "depthwise convolution", "", _refuse_conv, _conv, candidate=grouped_by_channel
)
_RULES = {rule.class_name: rule for rule in (*timm.RULES, *torchvision.RULES, *transformers.RULES, _CONV)}


def _class_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


_FUSED: dict[type[nn.Module], type[nn.Module]] = {}


def _rule_of_class(kind: type[nn.Module]) -> Rule:
    """The rule of a class, or of the class whose forward it has."""
    return next(rule for base in kind.__mro__ if (rule := _RULES.get(_class_name(base))) is not None)


def _fused_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a class that a rule serves which runs on kernels; the same one every time."""
    if kind in _FUSED:
        return _FUSED[kind]
    rule = _rule_of_class(kind)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        # A class made at run time cannot be found by its name: say how to make it again.
        state = kind.__reduce_ex__(self, 2)[2]
        return _new, (kind,), state

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        if mode:
            thaw(self)  # weights that are trained do not stay as they are
        return kind.train(self, mode)

    @wraps(rule.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        x = next(iter((*args, *kwargs.values())))
        if x.dtype == torch.float64 and kernels_run_on(x):  # which the kernels do not take
            return plain(self, *args, **kwargs)
        return rule.forward(self, *args, **kwargs)

    members = {
        "forward": forward,
        "train": train,
        "fused_from": kind,
        "__reduce_ex__": reduce,
        "__module__": __name__,
    }
    _FUSED[kind] = type(f"Fused{kind.__name__}", (kind,), members)
    return _FUSED[kind]


def _new(kind: type[nn.Module]) -> nn.Module:
    """An instance without state, as unpickling wants it."""
    fused = _fused_class(kind)
    return fused.__new__(fused)


def is_fused(module: nn.Module) -> bool:
    """Whether `fuse` has swapped this very module."""
    return hasattr(type(module), "fused_from")


_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
)  # fmt: skip


def _altered(module: nn.Module) -> str | None:
    """What someone has done to a module or one inside it that a kernel would pass by; None where nothing was."""
    for name, inside in module.named_modules():
        where = f"its {name} has" if name else "it has"
        if any(getattr(inside, hooks, None) for hooks in _HOOKS):
            return f"{where} hooks"
        if parametrize.is_parametrized(inside):
            return f"{where} parametrisations"
        if "forward" in vars(inside):
            return f"{where} a forward of its own"
        if ".quantiz" in type(inside).__module__ or getattr(inside, "qconfig", None) is not None:
            return f"{where} been quantised"
        for tensor in (*inside.parameters(recurse=False), *inside.buffers(recurse=False)):
            if type(tensor.data) is not Tensor or tensor.is_quantized:
                return f"{where} tensors of another kind ({type(tensor.data).__name__})"
    return None


def _rule_for(module: nn.Module) -> tuple[Rule, type[nn.Module]] | None:
    """The rule of a module's class, or else of the nearest class that it is derived from, and that class."""
    for base in parametrize.type_before_parametrizations(module).__mro__:
        rule = _RULES.get(_class_name(base))
        if rule is not None:
            return (rule, base) if rule.candidate(module) else None
    return None


def _why_not(module: nn.Module, rule: Rule, base: type[nn.Module]) -> str | None:
    """Why a module that a rule might serve is left; None where it is served."""
    same = parametrize.type_before_parametrizations(module) is base or (base is nn.Conv2d and is_conv2d(module))
    if not same:
        return f"it is derived from {base.__name__} and may compute something else"
    return refuse_version(module, rule) or _altered(module) or rule.refusal(module)


#: What modules call the biases or relative positions of their own attention.
_BIASES = (
    "attention_biases", "relative_position_bias_table", "rel_pos", "rel_pos_h", "cpb_mlp",
    "continuous_position_bias_mlp", "meta_mlp",
)  # fmt: skip


def _own_bias(module: nn.Module) -> str | None:
    """For attention with a bias that no rule knows: why it is left."""
    found = next((name for name in _BIASES if getattr(module, name, None) is not None), None)
    if found is None or "Attention" not in type(module).__name__:
        return None
    return f"no rule says how its attention computes its bias ({found})"


def _consumed(module: nn.Module, rule: Rule) -> Iterator[nn.Module]:
    """The layers inside a swapped module that it reads without calling them."""
    for child in rule.consumed:
        yield from module.get_submodule(child).modules()


def _rule_of(fused: nn.Module) -> Rule:
    return _rule_of_class(type(fused).fused_from)  # type: ignore[attr-defined]


def fuse(model: nn.Module) -> FuseReport:
    """Makes the modules of a model that kernels of vitkernels serve run on them, in place.

    Serves, of timm: Swin and both Swin V2, BEiT, MaxViT, CoAtNet, ConViT, relative-position ViT, GCViT, LeViT, TinyViT,
    EfficientFormer, EfficientViT of MSRA, EfficientNet and MobileNet (v4 and TensorFlow's padding too), ConvMixer,
    PVT-v2; of torchvision: Swin V1 and V2, MaxViT, and the depthwise convolutions, norms and activations of
    EfficientNet, MobileNet and MaxViT; of transformers: Swin V1 and V2, BEiT, Data2Vec, LeViT, SegFormer, EfficientNet;
    everywhere: depthwise convolutions, such as ConvNeXt's. Inference and training, any layout, autocast; weights may be
    loaded before or after. A module with
    hooks, parametrisations, quantised or otherwise unusual tensors, in itself or inside, is left alone, and so is one
    of a derived class, one whose shapes no kernel takes, and attention with a bias that no rule knows. Fusing again is
    no change: what is fused already is in neither list.

    What kernels want of the weights, such as folded batch norms and expanded bias tables, is derived at every call,
    since nobody sees every write to a weight. For inference with weights that change no more call `freeze(model)`,
    after loading and converting it: then it is derived once, under no_grad or inference_mode. `thaw(model)` and
    `train()` take that back; after writes that torch does not count (through `.data` or numpy) call `refresh(model)`.

    Under torch.compile and in export it is derived inside the graph, frozen or not. Where weights change no more,
    `torch._inductor.config.freezing = True` before the first call without gradients derives it once.

    Under gradient checkpointing, which computes each block twice, torch's own batch norms are updated twice a step. So
    are fused ones, but for a block's last: torch ends the second computation as soon as it has what it saved.

    Compile, export and distribute the model after fusing it, not before; hooks that are set afterwards on layers inside
    a swapped module may be passed by. On the CPU, and on every device that is not NVIDIA's, the kernels' plain PyTorch
    references run; where kernels run, fp64 goes through the modules' own forward.

    Returns: what was swapped, and what was left and why; print it.
    """
    swapped: list[Fused] = []
    left: list[Fused] = []
    swaps: list[tuple[nn.Module, type[nn.Module]]] = []
    fused = [module for module in model.modules() if is_fused(module)]
    consumed = {inside for module in fused for inside in _consumed(module, _rule_of(module))}
    for name, module in model.named_modules():
        if module in consumed or is_fused(module):
            continue
        found = _rule_for(module)
        why = _own_bias(module) if found is None else _why_not(module, *found)
        kind = parametrize.type_before_parametrizations(module)
        if why is not None:
            left.append(Fused(name, kind.__name__, why))
        elif found is not None:
            swaps.append((module, _fused_class(kind)))
            consumed.update(_consumed(module, found[0]))
            swapped.append(Fused(name, kind.__name__, found[0].what))
    for module, becomes in swaps:  # all at once: whatever raises before leaves the model as it was
        module.__class__ = becomes
    return FuseReport(tuple(swapped), tuple(left))


def unfuse(model: nn.Module) -> int:
    """Gives every module that `fuse` swapped its own class back; returns how many there were."""
    fused = [module for module in model.modules() if is_fused(module)]
    for module in fused:
        module.__class__ = type(module).fused_from  # type: ignore[attr-defined]
    return len(fused)


__all__ = ["FuseReport", "Fused", "freeze", "fuse", "is_fused", "refresh", "thaw", "unfuse"]
