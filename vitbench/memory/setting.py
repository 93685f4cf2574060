"""What a prediction is of: everything that decides a step's storages but the batch; and the card. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from vitbench.catalog import Resolution
from vitbench.variant import PUBLISHED, Variant

#: What is alive at the peak is one of these.
KINDS = ("weights", "gradients", "optimizer", "activations")
#: "adamw" is fused; "adamw-foreach" and "sgd" (with momentum) are torch's defaults on a GPU, "adamw-capturable" is what
#: CUDA graphs need; "lamb" is timm's.
OPTIMIZERS = ("adamw", "adamw-foreach", "adamw-capturable", "adamw-loop", "sgd", "lamb", "none")
#: The dtypes of `bench`, and mixed precision in fp16 with a gradient scaler.
DTYPES = ("fp32", "tf32", "bf16", "fp16", "amp", "amp-fp16")
MIB = 2**20
#: No larger batch is tried.
LARGEST_BATCH = 2**20 - 1


@dataclass(frozen=True)
class Setting:
    """A step of a model: as a `Case` of bench, how it is trained (see `work.Training`), other than published or not.

    `cudnn`: whether attention prefers cuDNN's kernel, as it does on sm_90, sm_100 and sm_103.
    """

    model: str
    resolution: Resolution
    mode: str
    dtype: str
    impl: str
    layout: str = "nchw"
    optimizer: str = "adamw"
    ddp: bool = False
    bucket_view: bool = False
    ema: bool = False
    checkpointing: bool = False
    cudnn: bool = False
    variant: Variant = PUBLISHED


@dataclass(frozen=True)
class Limit:
    """Bytes that a card has for torch's allocator, those of cuBLAS's workspace among them."""

    capacity: int
    workspace: int

    @property
    def key(self) -> str:
        return f"{self.capacity}/{self.workspace}"


def batch_words(largest: int) -> str:
    """A largest batch as it is said: "1,024", and "at least 1,048,575" where none larger was tried."""
    return f"at least {largest:,}" if largest >= LARGEST_BATCH else f"{largest:,}"


def prefers_cudnn(arch: int) -> bool:
    """Whether torch's scaled_dot_product_attention tries cuDNN's kernel first on this architecture (90 for sm_90)."""
    return arch in (90, 100, 103)


def workspace_bytes(arch: int, mode: str) -> int:
    """cuBLAS's workspace: one for the thread that calls the model, in training another for autograd's.

    Source: torch's ATen/cuda/CublasHandlePool.cpp: 32 MiB on Hopper and Blackwell, else :4096:2:16:8.
    """
    one = 32 * MIB if arch >= 90 else (2 * 4096 + 8 * 16) * 1024
    return one * (2 if mode == "train" else 1)


__all__ = [
    "DTYPES",
    "KINDS",
    "LARGEST_BATCH",
    "MIB",
    "OPTIMIZERS",
    "Limit",
    "Setting",
    "batch_words",
    "prefers_cudnn",
    "workspace_bytes",
]
