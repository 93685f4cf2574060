"""`python -m vitbench.kernel_bench`, which `make kernels-bench` calls."""

from __future__ import annotations

import math
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from vitbench.columns import Columns, Filter, Shown, Sort, check, show
from vitbench.errors import InputError


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N. Default: cuda where there is a GPU.")] = "",
    kernel: Annotated[
        str, typer.Option(help="Wildcards on kernel/case/pass/dtype, or parts of it, separated by commas.")
    ] = "*",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32. Default: bf16, on the CPU fp32.")] = "",
    out: Annotated[Path | None, typer.Option(help="The CSV. Default: results/<device>/kernels.csv.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds after which no further problem is begun.")] = math.inf,
    max_time: Annotated[float, typer.Option(help="Seconds that timing one implementation may take.")] = 2.0,
    columns: Columns = "",
    sort: Sort = "",
    filter: Filter = "",
) -> None:
    """Time the fused kernels beside eager, SDPA, FlexAttention, torch.compile and cuDNN, each verified before.

    Rows that the CSV has are not measured again. Exit code: 0 every row ok or unsupported, 1 some row is not or the
    budget was spent, 2 bad input, 3 it failed itself.
    """
    from vitbench.kernel_bench import run
    from vitbench.kernel_bench.rows import read
    from vitbench.kernel_bench.table import table
    from vitbench.measure import device as devices

    asked = Shown(columns=columns, sort=sort, filter=filter)
    check(table([]), asked)

    device = devices.check_device(device) if device else devices.default_device()
    dtypes = [name.strip() for name in (dtype or ("fp32" if device == "cpu" else "bf16")).split(",")]
    if out is None:
        out = Path("results") / devices.slug(devices.environment(device).device_name) / "kernels.csv"
    done = run(kernel, device, dtypes, budget, out, tell=lambda text: print(text, flush=True), max_seconds=max_time)
    print(f"{done.measured} problems measured, {done.resumed} found in {out}, {done.left} left ({done.stopped})")
    if rows := read(out):
        show(table(rows), asked)
    failed = [row for row in done.rows if row.status not in ("ok", "unsupported")]
    for row in failed:
        print(f"{row.status}: {row.id}: {row.reason}")
    raise typer.Exit(int(bool(failed) or done.stopped != "done"))


if __name__ == "__main__":
    try:
        typer.run(main)
    except InputError as error:
        print("vitbench: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        traceback.print_exc()
        print(f"vitbench: {type(error).__name__}: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(3)
