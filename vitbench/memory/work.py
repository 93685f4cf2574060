"""One step of inference or training without data, and the storages that it takes on a CUDA device."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitbench.models import foreign, outputs
from vitbench.trace import cuda, hollow
from vitbench.trace.autocast import enabled, policy
from vitbench.trace.skeleton import Unwritten, quietly, replace_tensors
from vitbench.trace.tracer import Tracer


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        optimizer: "adamw" is fused, "adamw-foreach" torch's default on a GPU, "adamw-capturable" that with
            counts of steps on the device, "sgd" has momentum 0.9 and is foreach, "lamb" is timm's; "none" leaves the
            gradients.
        set_to_none: whether gradients are freed between steps.
        ddp: gradients are copied into DistributedDataParallel's buckets.
        bucket_view: they are views of the buckets instead.
        ema: a second copy of the weights is kept.
        checkpointing: repeated blocks keep their input alone and run again in the backward pass.
    """

    optimizer: str = "adamw"
    set_to_none: bool = True
    ddp: bool = False
    bucket_view: bool = False
    ema: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class Work:
    """What is traced: a step of a model.

    Attributes:
        build: makes the model, called with the meta device as default; it may lie on any device.
        inputs: fake tensors that lie on the device between steps, such as the images and their labels.
        call: the output of the model for these inputs; in training the loss, or a tuple of that and what the caller
            keeps until the step ends.
        training: None for inference.
        dtype: of parameters and floating-point buffers.
        autocast: dtype of mixed precision, or None.
        cudnn: whether scaled_dot_product_attention prefers cuDNN's kernel.
        also_fp32: operators that autocast runs in fp32 beside CUDA's own list, as apex did.
        softmax_keeps_input: as softmax did before torch 1.11.
        beside: what else lies on the device, by kind.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    call: Callable[..., Any]
    training: Training | None = None
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    channels_last: bool = False
    cudnn: bool = False
    also_fp32: tuple[str, ...] = ()
    softmax_keeps_input: bool = False
    no_grad: Callable[[], contextlib.AbstractContextManager[Any]] = torch.inference_mode
    beside: Callable[[nn.Module], Mapping[str, list[Tensor]]] = field(default=lambda model: {})


@dataclass(frozen=True)
class Storages:
    """Every storage of a step: its bytes and kind, how many lie there before it, and the order of coming and going.

    An event is the number of a storage that comes, or the complement (~number) of one that goes. `products`,
    `convolutions`, `recurrent`: whether the step has any; convolutions are those whose windows overlap.
    """

    sizes: list[int]
    kinds: list[str]
    held: int
    events: list[int]
    products: bool
    convolutions: bool
    recurrent: bool


def of_images(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def of_images_and_labels(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return outputs.loss(model(x), labels)


def build(work: Work) -> nn.Module:
    """The model, to be traced as often as is wanted."""
    with torch.device("meta"), Unwritten():
        return work.build()


class Trace:
    """Steps of a model, traced one after the other; what lies on the device between them is made once.

    Args:
        built: the model, built before; the work's own else.
    """

    def __init__(self, work: Work, built: nn.Module | None = None) -> None:
        self._work = work
        self._built = build(work) if built is None else built
        self._recurrent = any(isinstance(module, nn.RNNBase) for module in self._built.modules())
        self._instead = cuda.instead(work.cudnn, work.softmax_keeps_input)
        self._seen: set[int] = set()
        self._prepare(frozenset())

    def _prepare(self, idle: frozenset[int]) -> None:
        """Makes the model and what its first step leaves, where no gradient reaches the parameters that are `idle`."""
        self._tracer = Tracer(self._instead, cuda.inside, self._watch)
        model = replace_tensors(self._built, lambda t: _hollow(t, self._work))
        with self._without_data():
            self._step = _Step(self._work, model, idle)
            self._step.prepare()
            for kind, tensors in self._step.held().items():
                self._mark(kind, tensors)
        self._held = len(self._tracer.sizes)

    def _mark(self, kind: str, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._tracer.mark(kind, tensor)

    def _watch(self, op: Any, args: tuple[Any, ...], out: Any) -> None:
        if op is not cuda.CONVOLUTION or _overlaps(args):
            self._seen.add(id(op))  # whose hash is slow

    @contextlib.contextmanager
    def _without_data(self) -> Iterator[None]:
        with quietly(), cuda.rules(self._instead), self._tracer:
            yield

    def storages(self, inputs: Callable[[], tuple[Any, ...]]) -> Storages:
        """Of a second step with `inputs`, as `Work` has them: the state of its optimizer is there.

        Raises: whatever the model raises on tensors without data.
        """
        if not self._tracer.back_to(self._held):  # the model keeps tensors of its last step
            self._prepare(self._step.idle)
        self._seen.clear()
        tracer, idle = self._tracer, self._step.idle
        with self._without_data():
            given = inputs()
            self._mark("activations", (tensor for one in given for tensor in _tensors(one)))
            before = len(tracer.sizes)
            tracer.events.clear()
            with tracer.recording({}):
                result = self._step(tracer, given)
            del result
        if self._step.idle != idle:
            self._prepare(self._step.idle)
            return self.storages(inputs)
        return Storages(
            list(tracer.sizes),
            [kind or "activations" for kind in tracer.kinds],
            before,
            in_order(tracer.events),
            any(id(op) in self._seen for op in cuda.PRODUCTS),
            id(cuda.CONVOLUTION) in self._seen,
            self._recurrent,
        )


def trace(work: Work) -> Storages:
    """Of one step; raises as `Trace.storages`."""
    return Trace(work).storages(work.inputs)


def _overlaps(args: tuple[Any, ...]) -> bool:
    """Whether a convolution's windows overlap; one that cuts patches is a matrix product."""
    kernel, stride = args[1].shape[2:], args[3]
    return any(size > step for size, step in zip(kernel, stride, strict=True))


def in_order(events: list[int]) -> list[int]:
    """The events with those that go at the same time in the order in which they came: autocast's cache has none."""
    ordered: list[int] = []
    going: list[int] = []
    for event in events:
        if event < 0:
            going.append(event)
            continue
        ordered += sorted(going, reverse=True)
        going.clear()
        ordered.append(event)
    return ordered + sorted(going, reverse=True)


def _hollow(tensor: Tensor, work: Work) -> Tensor:
    """As Module.to(dtype, memory_format=...) would make it."""
    kind = work.dtype if tensor.is_floating_point() else tensor.dtype
    return hollow.like(tensor, kind, work.channels_last and tensor.ndim == 4)


class _Step:
    def __init__(self, work: Work, model: nn.Module, idle: frozenset[int]) -> None:
        self.work = work
        self.training = work.training
        self.model = model.train(work.training is not None)
        self.idle = idle
        self.optimizer: torch.optim.Optimizer | None = None
        self.scale: Tensor | None = None
        self.beside: dict[str, list[Tensor]] = {}
        if work.training is not None and work.training.checkpointing:
            checkpoint_blocks(model)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def prepare(self) -> None:
        """What the first step leaves behind: the optimizer's state, buckets, the average, the scaler's numbers."""
        self.beside = {kind: list(tensors) for kind, tensors in self.work.beside(self.model).items()}
        if self.training is None:
            return
        self.optimizer = make_optimizer(self.training.optimizer, self.parameters)
        if self.optimizer is not None or not self.training.set_to_none:
            for number, parameter in enumerate(self.parameters):
                if number not in self.idle:
                    parameter.grad = torch.empty_like(parameter)
        self._update()
        if self.training.set_to_none:
            for parameter in self.parameters:
                parameter.grad = None
        gradients = self.beside.setdefault("gradients", [])
        if self.training.ddp:
            views = self._buckets(gradients)
            for parameter in self.parameters:
                parameter.register_post_accumulate_grad_hook(self._to_bucket(views[parameter]))
        if self.training.ema:
            average = [*self.model.parameters(), *self.model.buffers()]
            self.beside.setdefault("weights", []).extend(torch.empty_like(tensor) for tensor in average)
        if self.work.autocast is torch.float16:
            self.scale = torch.empty(())
            self.beside.setdefault("optimizer", []).extend([self.scale, torch.empty((), dtype=torch.int32)])

    def _buckets(self, held: list[Tensor]) -> dict[nn.Parameter, Tensor]:
        """A view for each parameter, last parameters first, in buckets of DDP's default size: 1 MiB, then 25 MiB."""
        views: dict[nn.Parameter, Tensor] = {}
        waiting: list[nn.Parameter] = []
        limit = 2**20

        def close() -> None:
            bucket = torch.empty(sum(p.numel() for p in waiting), dtype=waiting[0].dtype)
            held.append(bucket)
            start = 0
            for p in waiting:
                views[p] = bucket[start : start + p.numel()].view(p.shape)
                start += p.numel()
            waiting.clear()

        for parameter in reversed(self.parameters):
            waiting.append(parameter)
            if sum(p.numel() * p.element_size() for p in waiting) >= limit:
                close()
                limit = 25 * 2**20
        if waiting:
            close()
        return views

    def _to_bucket(self, view: Tensor) -> Callable[[Tensor], None]:
        by_view = self.training is not None and self.training.bucket_view

        def copy(parameter: Tensor) -> None:
            assert parameter.grad is not None
            view.copy_(parameter.grad)
            if by_view:
                parameter.grad = view

        return copy

    def held(self) -> dict[str, list[Tensor]]:
        """By kind, every tensor but the inputs that is alive between steps."""
        state: list[Tensor] = []
        if self.optimizer is not None:
            counts = any(self.optimizer.defaults.get(name) for name in ("fused", "capturable"))
            for values in self.optimizer.state.values():
                # The count of steps lies in the host's memory else.
                state += [v for name, v in values.items() if isinstance(v, Tensor) and (counts or name != "step")]
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        held = {
            "weights": [*self.model.parameters(), *self.model.buffers()],
            "optimizer": state,
            "gradients": gradients,
        }
        for kind, more in self.beside.items():
            held[kind] = held.get(kind, []) + more
        return held

    def __call__(self, tracer: Tracer, inputs: tuple[Any, ...]) -> Any:
        # Blocks that are checkpointed run again in the backward pass, under autocast again.
        with policy(self.work.autocast, self.work.also_fp32):
            return self._infer(inputs) if self.training is None else self._train(tracer, inputs)

    def _infer(self, inputs: tuple[Any, ...]) -> Any:
        with self.work.no_grad(), enabled(self.work.autocast):
            return self.work.call(self.model, *inputs)

    def _train(self, tracer: Tracer, inputs: tuple[Any, ...]) -> Any:
        assert self.training is not None
        reached: set[Tensor] = set()
        hooks = [parameter.register_post_accumulate_grad_hook(reached.add) for parameter in self.parameters]
        with enabled(self.work.autocast):
            result = self.work.call(self.model, *inputs)
        loss = result[0] if isinstance(result, tuple) else result
        (loss if self.scale is None else loss * self.scale).backward()
        self.idle = frozenset(number for number, one in enumerate(self.parameters) if one not in reached)
        for hook in hooks:
            hook.remove()
        for parameter in self.parameters:
            if parameter.grad is not None:
                tracer.mark("gradients", parameter.grad)
        self._update()
        if self.training.set_to_none:
            for parameter in self.parameters:
                parameter.grad = None
        return loss.detach()

    def _update(self) -> None:
        """Torch refuses to step capturable optimizers on the CPU, where these tensors pretend to lie."""
        if self.optimizer is None:
            return
        adam: Any = sys.modules[torch.optim.Adam.__module__]
        where = adam._get_capturable_supported_devices
        adam._get_capturable_supported_devices = lambda supports_xla=True: ["cpu"]
        try:
            self.optimizer.step()
        finally:
            adam._get_capturable_supported_devices = where


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def make_optimizer(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    """One of OPTIMIZERS, as torch makes it for parameters on a GPU; None for "none".

    Raises: InputError where the library that has it is not installed.
    """
    if name == "none":
        return None
    if name.startswith("adamw"):
        if name == "adamw":
            return torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        loop, capturable = name == "adamw-loop", name == "adamw-capturable"
        return torch.optim.AdamW(parameters, lr=1e-6, foreach=not loop, capturable=capturable)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, foreach=True)
    foreign.load("timm")
    made: torch.optim.Optimizer = importlib.import_module("timm.optim").Lamb(parameters, lr=1e-6)
    return made


def checkpoint_blocks(model: nn.Module) -> int:
    """Makes repeated blocks keep their input alone; returns how many there are.

    Those are the outermost members of a Sequential or ModuleList that have modules of their own and a class in common.
    """
    from torch.utils.checkpoint import checkpoint

    count = 0
    for child in model.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            kinds = [type(member) for member in child if any(True for _ in member.children())]
            repeated = [
                m for m in child if kinds.count(type(m)) > 1 and not isinstance(m, (nn.Sequential, nn.ModuleList))
            ]
            for member in repeated:
                run = member.forward

                def again(*args: Any, _run: Any = run, **kwargs: Any) -> Any:
                    return checkpoint(_run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

                member.forward = again
            count += len(repeated)
            count += sum(checkpoint_blocks(member) for member in child if member not in repeated)
        else:
            count += checkpoint_blocks(child)
    return count


__all__ = [
    "Storages",
    "Training",
    "Work",
    "build",
    "checkpoint_blocks",
    "make_optimizer",
    "of_images",
    "of_images_and_labels",
    "trace",
]
