"""What the commands that measure models are told, each option once: here. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from vitbench.columns import Shown
from vitbench.results.row import NOISE, RANDOM, Setup
from vitbench.variant import PUBLISHED, DropPath, NumClasses, Reparam, Variant

Model = Annotated[str, Option("--model", "-m", help="Names or wildcards, separated by commas; `all` is every model.")]
Out = Annotated[Path | None, Option("--out", help="The CSV to write. Default: results/<device>/<models>.csv.")]
Device = Annotated[str, Option(help="cpu, cuda or cuda:N. Default: cuda where there is a GPU.")]
Devices = Annotated[
    str,
    Option(
        help="cpu, cuda or cuda:N; several such as cuda:0,cuda:1 share the cases, one at a time on each. "
        "Default: cuda where there is a GPU."
    ),
]
Fresh = Annotated[
    bool, Option("--fresh", help="Begin anew although the CSV exists; the old file is renamed, not lost.")
]
TimeLimit = Annotated[float, Option(help="Seconds one case may take, compilation included.")]
Budget = Annotated[
    str, Option("--budget", help="Stop after so long, such as 90s or 10m; the same command goes on from there.")
]
Explain = Annotated[bool, Option("--explain", help="Say below the table what its columns mean.")]
Export = Annotated[str, Option("--export", help="Also write the rows in another tool's format: timm.")]
Baseline = Annotated[Path | None, Option(help="A vitbench or timm CSV; the table shows the throughput over it.")]


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Shown):
    """Of `vitbench bench`, as typed."""

    model: Model = "vit_base_patch16_224,resnet50,cmt_s"
    resolution: Annotated[
        str, Option(help="Sizes such as 224 or 800x1066, `native`, or factors of it such as x1.5. Default by device.")
    ] = ""
    batch: Annotated[str, Option(help="Batch sizes. Default by device.")] = ""
    impl: Annotated[
        str, Option(help="eager, sdpa, flex, compile, max-autotune, fused, fused+compile. Default by device.")
    ] = ""
    dtype: Annotated[str, Option(help="fp32, tf32, bf16, fp16, amp (fp32 weights, bf16 autocast).")] = "fp32"
    mode: Annotated[str, Option(help="infer, train (forward, backward, AdamW step).")] = "infer"
    layout: Annotated[str, Option(help="nchw, nhwc (channels_last).")] = "nchw"
    device: Devices = ""
    out: Annotated[
        Path | None,
        Option(
            "--out", help="The CSV to write, or the folder of a run in shards. Default: results/<device>/<models>.csv."
        ),
    ] = None
    time_limit: TimeLimit = 600.0
    min_time: Annotated[float, Option(help="Seconds of samples each case gets at least.")] = 0.5
    max_time: Annotated[
        float | None, Option(help="Seconds of samples each case gets at most. Default: 15 on a GPU, 2 on a CPU.")
    ] = None
    images: Annotated[str, Option(help="A folder of photographs to feed in. Default: seeded normal noise.")] = ""
    weights: Annotated[str, Option(help="A .safetensors file for the one model. Default: seeded random.")] = ""
    weights_resolution: Annotated[
        str, Option(help="The size that --weights was saved at, such as 224x384. Default: told from its tables.")
    ] = ""
    num_classes: NumClasses = None
    drop_path: DropPath = None
    reparam: Reparam = False
    checkpointing: Annotated[
        bool, Option("--checkpointing", help="Gradient checkpointing in training: memory for time.")
    ] = False
    compile_mode: Annotated[
        str, Option(help="Of torch.compile: default, reduce-overhead, max-autotune, max-autotune-no-cudagraphs.")
    ] = ""
    config: Annotated[
        str, Option(help="A JSON configuration, as the hub keeps it, for the one transformers: model.")
    ] = ""
    graphs: Annotated[
        bool, Option("--graphs", help="Record each step as a CUDA graph and time its replay: no launch costs.")
    ] = False
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print the cases with parameters, GMACs and predicted memory; measure nothing.")
    ] = False
    gpu: Annotated[str, Option(help="With --dry-run: plan for a card that need not be here, such as 'RTX 4090'.")] = ""
    fresh: Fresh = False
    budget: Budget = ""
    all: Annotated[
        bool, Option("--all", help="Every case of the default grid, for as long as it takes; else what tells most.")
    ] = False
    export: Export = ""
    baseline: Baseline = None
    explain: Explain = False
    executor: Annotated[
        str, Option(help="local (here and now), slurm, or submitit-local (here, going on without this command).")
    ] = "local"
    shards: Annotated[
        int | None, Option(help="Jobs that cases are dealt to, by predicted time. Default: one for an hour.")
    ] = None
    slurm_partition: Annotated[str, Option(help="With --executor slurm. Default: the cluster's.")] = ""
    slurm_gpus_per_task: Annotated[
        int | None, Option(help="With --executor slurm. Default: 1, with --device cpu none.")
    ] = None
    slurm: Annotated[
        list[str] | None,
        Option("--slurm", metavar="KEY=VALUE", help="Any parameter of submitit, such as timeout_min=90."),
    ] = None
    follow: Annotated[
        bool, Option("--follow", help="Show rows of jobs as they come; Ctrl-C leaves, and the jobs go on.")
    ] = False

    @property
    def in_shards(self) -> bool:
        """Whether more than this process measures: on several devices, or in jobs."""
        return self.executor != "local" or "," in self.device


@dataclass(frozen=True, kw_only=True)
class MaxBatchOptions(Shown):
    """Of `vitbench max-batch`, as typed."""

    model: Model = "vit_base_patch16_224,resnet50"
    resolution: Annotated[str, Option(help="As for bench.")] = "native"
    impl: Annotated[str, Option(help="As for bench.")] = "eager"
    dtype: Annotated[str, Option(help="As for bench.")] = "amp"
    mode: Annotated[str, Option(help="infer, train.")] = "train"
    layout: Annotated[str, Option(help="nchw, nhwc (channels_last).")] = "nchw"
    device: Device = ""
    time_limit: TimeLimit = 600.0


@dataclass(frozen=True, kw_only=True)
class MemoryCurvesOptions(Shown):
    """Of `vitbench memory-curves`, as typed."""

    model: Model = "vit_base_patch16_224,resnet50"
    resolution: Annotated[str, Option(help="As for bench.")] = "native"
    batch: Annotated[str, Option(help="Batch sizes.")] = "1,2,4,8,16,32,64,128,256"
    dtype: Annotated[str, Option(help="As for bench.")] = "fp32"
    mode: Annotated[str, Option(help="infer, train.")] = "infer,train"
    measure_up_to: Annotated[
        int,
        Option(help="The largest batch that is measured beside predicted. Default: 4 on the CPU, all on a GPU."),
    ] = -1
    gpu: Annotated[
        str, Option(help="Predict for this card, which need not be here, such as 'A100 80GB'; measured where it is.")
    ] = ""
    device: Device = ""
    out: Out = None
    time_limit: TimeLimit = 600.0
    fresh: Fresh = False
    budget: Budget = ""


@dataclass(frozen=True, kw_only=True)
class ListOptions(Shown):
    """Of `vitbench list`, as typed."""

    pattern: Annotated[str, Argument(help="Names or wildcards, separated by commas.")] = "all"
    format: Annotated[str, Option(help="table, csv or json.")] = "table"


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Shown):
    """Of `vitbench report`, as typed."""

    csv: Annotated[list[Path], Argument(metavar="RESULTS.csv...", help="CSVs that commands of vitbench wrote.")]
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Write a page of all files, its pictures and summary.md there.")
    ] = None
    against: Annotated[
        Path | None, Option(metavar="BASE.csv", help="With --out: what changed since, as `vitbench compare` judges it.")
    ] = None
    export: Export = ""
    baseline: Baseline = None
    explain: Explain = False


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep measures, checked: what `sweep.run` and its worker are told.

    Times are seconds; batches above `measure_up_to` are predicted only, `graphs` replays steps as CUDA graphs.
    """

    time_limit: float = 600.0
    min_time: float = 0.5
    max_time: float = 15.0
    passes: tuple[str, ...] = ("latency", "memory", "energy")
    images: str = ""
    weights: str = ""
    weights_resolution: str = ""
    fresh: bool = False
    measure_up_to: int | None = None
    graphs: bool = False
    variant: Variant = PUBLISHED

    @property
    def setup(self) -> Setup:
        """What a row says of them."""
        saved_at = f" saved at {self.weights_resolution}" if self.weights_resolution else ""
        return Setup(
            input=f"images in {Path(self.images).resolve()}" if self.images else NOISE,
            weights=Path(self.weights).name + saved_at if self.weights else RANDOM,
            graphs=self.graphs,
            num_classes=self.variant.num_classes,
            drop_path=self.variant.drop_path,
            reparam=self.variant.reparam,
            checkpointing=self.variant.checkpointing,
            compile_mode=self.variant.compile_mode or None,
            config=Path(self.variant.config).name or None,
        )
