"""Modelled against measured times: what is paired, and what the summary says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from vitkernels import Launch

from vitbench.audit.model.time import failure
from vitbench.audit.records import Row
from vitbench.audit.validate import pairs, rank_correlation, summary
from vitbench.errors import InputError

pytestmark = pytest.mark.fast


def row(case: str, pass_name: str, modelled_us: float) -> Row:
    launch = Launch(
        kernel=None, op="conv", case=case, pass_name=pass_name, dtype="bf16", args={}, grid=(1,), elements=1, bytes=1
    )
    return replace(failure(launch, 90, "3.7.1", ""), status="ok", modelled_us=modelled_us)


ROWS = [row(case, pass_name, scale * us) for case, scale in (("a", 1.0), ("b", 2.0), ("c", 4.0))
        for pass_name, us in (("fwd", 10.0), ("bwd_dx", 20.0), ("bwd_dw", 30.0))]  # fmt: skip


def csv(path: Path, *lines: str) -> Path:
    path.write_text("kernel,case,pass,dtype,median_us\n" + "".join(f"conv,{line}\n" for line in lines))
    return path


def test_a_pass_is_the_sum_of_its_launches(tmp_path: Path) -> None:
    path = csv(tmp_path / "m.csv", "a,fwd,bf16,20", "a,bwd_*,bf16,100", "b,fwd+bwd_dx,bf16,90", "a,fwd,fp32,1")
    assert [(p.measured_us, p.modelled_us) for p in pairs(ROWS, path)] == [(20, 10), (100, 50), (90, 60)]


def test_summary_ranks_and_names_the_farthest_off_first(tmp_path: Path) -> None:
    found = pairs(ROWS, csv(tmp_path / "m.csv", "a,fwd,bf16,10", "b,fwd,bf16,40", "c,fwd,bf16,50"))
    lines = summary(found).splitlines()
    assert lines[1].split() == ["40.00", "20.00", "0.50", "conv/b/fwd/bf16"]
    assert lines[-1] == "3 launches: rank correlation 1.000, median modelled / measured 0.800"
    turned = pairs(ROWS, csv(tmp_path / "t.csv", "a,fwd,bf16,50", "b,fwd,bf16,40", "c,fwd,bf16,10"))
    assert rank_correlation(turned) == pytest.approx(-1.0)
    assert rank_correlation(turned[:2]) is None


def test_rows_of_rivals_are_left_out_and_launches_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        "kernel,case,pass,dtype,impl,launches,median_us\n"
        "conv,a,fwd+bwd,bf16,fused,fwd+bwd*,100\nconv,a,fwd+bwd,bf16,eager,,500\nconv,b,fwd,bf16,fused,fwd,\n"
    )
    assert [(p.measured_us, p.modelled_us) for p in pairs(ROWS, path)] == [(100, 60)]


def test_sums_in_fp32_belong_to_the_pass_and_are_no_pass_of_their_own(tmp_path: Path) -> None:
    total = replace(row("a", "bwd_sum", 5.0), dtype="fp32")
    path = csv(tmp_path / "m.csv", "a,fwd+bwd_*,bf16,100", "a,fwd+bwd_*,fp32,100")
    assert [(p.name, p.modelled_us) for p in pairs([*ROWS, total], path)] == [("conv/a/fwd+bwd_*/bf16", 65)]


def test_benchmark_json_names_launches_in_extra_info(tmp_path: Path) -> None:
    extra = {"kernel": "conv", "case": "a", "pass": "fwd", "dtype": "bf16"}
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"benchmarks": [{"extra_info": extra, "stats": {"median": 2e-5}}]}))
    assert [(p.name, p.measured_us) for p in pairs(ROWS, path)] == [("conv/a/fwd/bf16", pytest.approx(20.0))]


def test_bad_measurements_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="measures no launch that was audited"):
        pairs(ROWS, csv(tmp_path / "m.csv", "z,fwd,bf16,10"))
    with pytest.raises(InputError, match="holds no kernel timings"):
        pairs(ROWS, csv(tmp_path / "m.csv", "a,fwd,bf16,soon"))
    with pytest.raises(InputError, match="of one GPU"):
        pairs([*ROWS, replace(ROWS[0], arch="sm_80")], csv(tmp_path / "m.csv", "a,fwd,bf16,10"))
