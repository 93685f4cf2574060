"""What `vitbench predict` is told, each option once: here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vitbench.columns import Shown


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Shown):
    """Of `vitbench predict`."""

    gpu: Annotated[
        str, Option(help="Cards that need not be here, such as 'RTX 4090,H100 SXM'; `list` prints all that are known.")
    ] = "RTX 4090"
    model: Annotated[
        str, Option("--model", "-m", help="Names or wildcards, separated by commas, such as 'timm:*,cmt_*'.")
    ] = "vit_base_patch16_224,resnet50"
    resolution: Annotated[str, Option(help="Sizes such as 224, `native`, or factors of it such as x1.5.")] = "native"
    batch: Annotated[str, Option(help="Batch sizes; what was validated is large.")] = "256"
    dtype: Annotated[str, Option(help="amp (bf16 autocast), amp-fp16, bf16, fp16, fp32, tf32.")] = "amp"
    impl: Annotated[str, Option(help="eager, compile (torch.compile in its default mode).")] = "eager"
    layout: Annotated[str, Option(help="nchw, nhwc (channels_last).")] = "nchw"
    fast_norm: Annotated[
        bool, Option("--fast-norm", help="timm's models normalise in the lower precision, as its benchmark can.")
    ] = False
    reparam: Annotated[bool, Option("--reparam", help="Branches are merged, where a model has some.")] = False
    min_top1: Annotated[float | None, Option(help="Only models of at least this published ImageNet top-1.")] = None
    min_img_per_s: Annotated[float | None, Option(help="Only models predicted to reach this.")] = None
    max_mem: Annotated[float | None, Option(metavar="GIB", help="Only what takes at most so many GiB.")] = None
    anchors: Annotated[
        Path | None,
        Option(metavar="CSV", help="Measured rows of the card, of vitbench or timm, that correct two factors; 8 do."),
    ] = None
    sort: Annotated[
        str, Option(help="img_per_s, top1, memory, model, or a column of the table; -COLUMN turns it round.")
    ] = "img_per_s"
    explain: Annotated[
        str, Option(metavar="MODEL", help="Where this model's time goes, kernel by kernel, and what would change it.")
    ] = ""
    format: Annotated[str, Option(help="table, csv or json.")] = "table"
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Also write predictions.csv and a picture of top-1 against images/s.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class ValidatePredictionsOptions(Shown):
    """Of `vitbench validate-predictions`."""

    results: Annotated[Path, Argument(metavar="RESULTS.csv", help="Rows that `vitbench bench` measured on a GPU.")]
