"""What `vitbench memory` is told, each option once: here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from vitbench.columns import Shown
from vitbench.variant import DropPath, NumClasses, Reparam


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(Shown):
    """Of `vitbench memory`."""

    model: Annotated[
        str, Option("--model", "-m", help="Names or wildcards, separated by commas; `all` is every model.")
    ] = "vit_base_patch16_224,resnet50"
    gpu: Annotated[
        str, Option(help="Cards that need not be here, such as 'A100 80GB,RTX 4090'; `list` prints all that are known.")
    ] = ""
    gib: Annotated[float | None, Option(help="Instead: a card with so many GiB of usable memory.")] = None
    resolution: Annotated[
        str, Option(help="Sizes such as 224, ranges such as 224..512:32, `native`, or factors of it such as x1.5.")
    ] = "native"
    batch: Annotated[str, Option(help="Batch sizes.")] = "1,8,64"
    mode: Annotated[str, Option(help="infer, train.")] = "infer,train"
    dtype: Annotated[str, Option(help="fp32, tf32, bf16, fp16, amp (bf16 autocast), amp-fp16 (with a scaler).")] = "amp"
    impl: Annotated[str, Option(help="eager, sdpa, fused; what compilers allocate is not predicted.")] = "eager"
    layout: Annotated[str, Option(help="nchw, nhwc (channels_last).")] = "nchw"
    optimizer: Annotated[
        str, Option(help="adamw (fused), adamw-foreach, adamw-capturable, adamw-loop, sgd (momentum), lamb, none.")
    ] = "adamw"
    ddp: Annotated[bool, Option("--ddp", help="DistributedDataParallel keeps buckets of gradients.")] = False
    gradient_as_bucket_view: Annotated[
        bool, Option("--gradient-as-bucket-view", help="With --ddp: gradients are views of the buckets.")
    ] = False
    ema: Annotated[bool, Option("--ema", help="An average of the weights is kept.")] = False
    checkpointing: Annotated[
        bool, Option("--checkpointing", help="Repeated blocks keep their input alone and run twice.")
    ] = False
    num_classes: NumClasses = None
    drop_path: DropPath = None
    reparam: Reparam = False
    format: Annotated[str, Option(help="table, csv or json.")] = "table"
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Also write memory.csv, and curves as PNG, SVG and HTML.")
    ] = None
