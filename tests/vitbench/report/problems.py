"""What the report's tests share: result files as commands write them, and worse ones."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitbench.results.row import HEADER, SCHEMA

ROOT = Path(__file__).parents[3]
MARKUP = '<img src=x onerror="document.title=1">'
SCRIPT = "</script><script>document.title=1</script>"


def row(**given: Any) -> dict[str, Any]:
    """The cells of a timed case; latency in ms makes throughput and its interval."""
    case: dict[str, Any] = dict.fromkeys(HEADER, "")
    case |= {
        "schema": SCHEMA, "status": "ok", "model": "resnet50", "family": "resnet", "impl": "eager", "mode": "infer",
        "dtype": "fp32", "layout": "nchw", "device": "cuda", "device_name": "H200", "resolution": 224, "batch": 1,
        "input": "noise", "weights": "random", "torch": "2.13.0", "triton": "3.7.1", "threads": 4, "top1": 76.13,
        "params_m": 25.6, "gmacs": 4.1,
    } | given  # fmt: skip
    if case["status"] == "ok" and (ms := case["latency_ms_p50"]):
        timed = {"latency_ms_ci_low": 0.98 * ms, "latency_ms_ci_high": 1.02 * ms, "img_per_s": 1e3 * case["batch"] / ms}
        case |= timed | {"peak_mem_mib": 100 + 9 * case["batch"], "predicted_mem_mib": 99 + 9 * case["batch"]}
        case |= {"energy_j_per_img": 0.4 * ms / case["batch"], "energy_net_j_per_img": 0.3 * ms / case["batch"]}
    parts = ("model", "impl", "mode", "dtype", "layout", "resolution")
    return case | {"case": "/".join(str(case[part]) for part in parts) + f"/b{case['batch']}/{case['device']}"}


def sweep() -> list[dict[str, Any]]:
    """Two models, two implementations, three batches, two sizes; latency grows as batch^1 and size^2."""
    speed = {"resnet50": 2.0, "deit_small_patch16_224": 3.0, "eager": 1.0, "compile": 0.5}
    top1 = {"resnet50": 76.13, "deit_small_patch16_224": 79.9}
    grid = itertools.product(top1, ("eager", "compile"), (1, 4, 16), (224, 448))
    return [
        row(model=model, impl=impl, batch=batch, resolution=px, top1=top1[model],
            latency_ms_p50=speed[model] * speed[impl] * batch * (px / 224) ** 2)
        for model, impl, batch, px in grid
    ]  # fmt: skip


def many(count: int) -> Iterator[dict[str, Any]]:
    """So many cases of 50 models, one in twenty of them out of memory."""
    grid = itertools.product(range(50), ("eager", "compile", "fused", "sdpa"), ("infer", "train"), (1, 8, 64, 128, 256))
    sizes = itertools.product((224, 384, 448, 512, 640), grid)
    for number, (px, (model, impl, mode, batch)) in enumerate(itertools.islice(sizes, count)):
        given = {"model": f"timm:model_{model}", "impl": impl, "mode": mode, "batch": batch, "resolution": px}
        if number % 20 == 19:
            yield row(**given, status="oom", reason="CUDA out of memory", top1="")
        else:
            yield row(
                **given, latency_ms_p50=round((1 + model % 7) * batch * 0.731 * (px / 224) ** 2, 6), top1=70 + model / 4
            )


def write(path: Path, rows: Sequence[dict[str, Any]], header: Sequence[str] = HEADER) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path
