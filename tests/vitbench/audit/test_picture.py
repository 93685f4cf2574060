"""The picture of an audit: what it sums up, and that the files are written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from vitkernels import Launch

from vitbench.audit.model.time import failure
from vitbench.audit.picture import chart, main, summary
from vitbench.audit.records import STALLS, Stalls, write_csv
from vitbench.errors import InputError

pytestmark = pytest.mark.fast

LAUNCH = Launch(
    kernel=None, op="conv", case="a", pass_name="bwd_0", dtype="bf16", args={}, grid=(1,), elements=1, bytes=1
)
BROKEN = failure(LAUNCH, 90, "3.7.1", "no")
ROW = replace(BROKEN, status="ok", modelled_us=10.0, issue_us=5.0, bytes_us=8.0, floor_share=0.8)


def test_chunks_of_a_pass_are_one_line_with_the_medians() -> None:
    rows = [
        ROW,
        replace(ROW, pass_="bwd_32", issue_us=7.0),
        replace(ROW, pass_="bwd_64", issue_us=9.0, floor_share=0.2),
    ]
    (line,) = summary([*rows, replace(BROKEN, pass_="fwd")])
    assert (line["name"], line["launches"], line["issue"], line["floor share"]) == ("conv bwd", 3, 0.7, 0.8)


def test_shares_of_cycles_are_drawn_where_the_audit_has_them() -> None:
    assert not {*STALLS} & {*summary([ROW])[0]}
    rows = [replace(ROW, stalls=Stalls(stall_wait=share)) for share in (0.1, 0.4, 0.2)]
    (line,) = summary(rows)
    assert {name: line[name] for name in STALLS if name in line} == {"stall_wait": 0.2}
    titles = [part.get("title") for part in chart(rows).to_dict()["hconcat"][1]["layer"]]
    assert "where cycles of warps go" in titles
    assert len(chart([ROW]).to_dict()["hconcat"]) == 2


def test_files_are_drawn_beside_the_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv([ROW], tmp_path / "audit-sm_90-triton3.7.1.csv")
    assert main(tmp_path) == 0
    assert (tmp_path / "audit-sm_90-triton3.7.1.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "audit-sm_90-triton3.7.1.svg").read_text()
    assert capsys.readouterr().out.count("wrote ") == 2


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no audit-"):
        main(tmp_path)
    write_csv([BROKEN], tmp_path / "audit-sm_90-triton3.7.1.csv")
    with pytest.raises(InputError, match="no modelled launch"):
        main(tmp_path)
