"""Peers compute what ours do, are launched as torch would, and are compared with what ours take in all."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import sympy
import torch
import triton
from vitkernels import BIAS_ATTENTION_CASES, DEPTHWISE_CONV2D_CASES, Launch, bias_attention_reference

from vitbench.audit.model.time import failure
from vitbench.audit.peers import kernels, launches, table
from vitbench.errors import InputError


@pytest.mark.parametrize("sizes", [(2, 2, 40, 24, 16), (1, 1, 128, 128, 8)])
def test_attention_is_right(sizes: tuple[int, int, int, int, int], device: str) -> None:
    b, h, n, m, d = sizes
    q, k, v = (torch.randn(b, length, h, d, device=device) for length in (n, m, m))
    bias = torch.randn(h, n, m, device=device)
    want = bias_attention_reference(*(x.transpose(1, 2) for x in (q, k, v)), bias).transpose(1, 2)
    blocks = {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_D": 16}
    got = torch.empty_like(q)
    padded = torch.nn.functional.pad(bias, (0, -m % 16), value=-1e9)
    kernels.textbook_attention[triton.cdiv(n, 32), b * h](got, q, k, v, padded, h, n, m, d, d**-0.5, **blocks)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    got.fill_(float("nan"))
    one, at = torch.ones(1, dtype=torch.int32, device=device), torch.zeros(2, dtype=torch.int32, device=device)
    kernels.flex_attention[triton.cdiv(n, 32), b, h](
        got, q, k, v, bias, one, at, n, m, d, h, d**-0.5, **blocks, SPARSE=1 << 30
    )
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("k", "stride", "padding"), [(3, 1, 1), (5, 2, 2), (2, 2, 0), (4, 1, 1)])
def test_direct_depthwise_is_right(k: int, stride: int, padding: int, device: str) -> None:
    x, w, bias = (torch.randn(*s, device=device, requires_grad=True) for s in ((2, 9, 7, 20), (k, k, 20), (20,)))
    want = torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2), w.permute(2, 0, 1)[:, None], bias, stride, padding, groups=20
    ).permute(0, 2, 3, 1)
    dy = torch.randn(want.shape, device=device)
    dx, dw = torch.autograd.grad(want, (x, w), dy)
    _, height, width, _ = want.shape
    y = torch.empty_like(dy)
    kernels.direct_depthwise[triton.cdiv(height * width, 8), 2, 2](
        y, x, w, bias, 9, 7, 20, height, width, k, stride, padding, 8, 16
    )
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-4)
    part = torch.full((3, k, k, 20), float("nan"), device=device)
    kernels.direct_depthwise_dw[k * k, 2, 3](part, x, dy, 2, 9, 7, 20, height, width, k, stride, padding, 8, 16)
    torch.testing.assert_close(part.sum(0), dw, atol=1e-5, rtol=1e-4)
    if stride == 1:
        got = torch.full_like(x, float("nan"))
        kernels.direct_depthwise[triton.cdiv(9 * 7, 8), 2, 2](
            got, dy, w.flip(0, 1).contiguous(), None, height, width, 20, 9, 7, k, 1, k - 1 - padding, 8, 16
        )
        torch.testing.assert_close(got, dx, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arch", [80, 86, 90, 100, 120])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_flex_tiles_are_those_that_torch_chooses(monkeypatch: pytest.MonkeyPatch, arch: int, head_dim: int) -> None:
    from torch._inductor.template_heuristics.triton import CUDAConfigHeuristic

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: divmod(arch, 10))
    choose = CUDAConfigHeuristic().get_flex_attn_fwd_configs
    given = {"head_dim": head_dim, "seq_len": sympy.Integer(196), "dtype": torch.bfloat16}  # torch 2.14 asks for all
    (chosen,) = choose(**{name: given[name] for name in inspect.signature(choose).parameters})
    tiles = launches.flex_tiles(arch, head_dim)
    assert tiles[0] == (chosen.block_m, chosen.block_n, chosen.num_stages, chosen.num_warps)
    assert len(set(tiles)) == len(tiles) > 1


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_flex_tiles_of_the_backward_pass_begin_with_what_torch_chooses(arch: int) -> None:
    tiles = launches.flex_backward_tiles(arch, 32)
    on_100 = (64, 128, 128, 64, 3, 4) if torch.__version__ < (2, 14) else (32, 64, 64, 32, 3, 4)
    expected = {90: (64, 64, 64, 64, 3, 4), 100: on_100}.get(arch, (32, 128, 128, 32, 3, 4))
    assert tiles[0] == expected
    assert len(set(tiles)) == len(tiles) == 4


def test_a_case_is_audited_with_its_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launches, "TEXTBOOK", ((64, 64, 1, 4), (128, 128, 4, 4)))
    monkeypatch.setattr(launches, "flex_tiles", lambda arch, head_dim: [(64, 64, 3, 4)])
    monkeypatch.setattr(launches, "TEXTBOOK_BACKWARD", ((32, 64, 64, 32, 1, 4),))
    monkeypatch.setattr(launches, "flex_backward_tiles", lambda arch, head_dim: [(64, 64, 64, 64, 1, 4)])
    forward, backward = table.compare(90, "bias_attention/coatnet_0-s4-224/*", 1, cache=tmp_path)
    assert [x.case.rpartition("/")[2] for x in (forward, backward)] == ["fwd", "bwd"]
    # Four stages of a bias of 128 x 128 do not fit: what does counts.
    assert forward.tried in ("textbook 64x64+s1+w4", "flex 64x64+s3+w4")
    for found in (forward, backward):
        assert found.faults == ""
        assert set(found.peers_us) == {"textbook", "flex"}
        assert found.ratio == pytest.approx(min(found.peers_us.values()) / found.ours_us)
        assert 0 < found.floor_us < found.ours_us
    with pytest.raises(InputError, match="no pass that has peers matches"):
        table.compare(90, "gated_attention/*/fwd/*")


def test_a_convolution_is_audited_with_its_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launches, "DIRECT", ((32, 32, 2),))
    monkeypatch.setattr(launches, "DIRECT_DW", ((32, 64, 32, 4),))
    forward, backward = table.compare(90, "depthwise_conv2d/cmt_s-c-irffn-*-nhwc/*", 1, cache=tmp_path)
    assert [x.case.rpartition("/")[2] for x in (forward, backward)] == ["fwd", "bwd"]
    assert [x.tried for x in (forward, backward)] == ["direct 32x32+w2", "direct 32x32+w2+32x64+32+w4"]
    for found in (forward, backward):
        assert found.faults == ""
        assert set(found.peers_us) == {"direct"}
        assert 0 < found.floor_us < found.ours_us
    reduced = {case.name for case in DEPTHWISE_CONV2D_CASES if case.stride > 1 and case.name in launches.DIRECT_CASES}
    assert reduced
    assert not any(name.endswith("/bwd") and any(case in name for case in reduced) for name in launches.peers(90))


def test_the_verdict_and_the_page_name_where_ours_is_behind(tmp_path: Path) -> None:
    ahead = table.Compared("a", "sm_90", "H200", "3.7.1", 10.0, 12.0, 15.0, None, 5.0, "textbook t")
    behind = replace(ahead, case="b", textbook_us=9.0, flex_us=None)
    assert ahead.ratio == pytest.approx(1.2)
    assert table.verdict([ahead]) == "ahead of every peer at 1 of 1 cases"
    assert table.verdict([ahead, behind]) == "ahead of every peer at 1 of 2 cases; behind at b sm_90 (0.90)"
    cells = {column.name: column.values for column in table.table([ahead, behind])}
    assert cells["flex us"] == [15.0, None]
    page = table.page([ahead, behind]).splitlines()
    assert page[2:4] == [
        "| a | 10.00 | 12.00 | 15.00 |  | 5.00 | 1.20 | textbook t |  |",
        "| b | 10.00 | 9.00 |  |  | 5.00 | 0.90 | textbook t | not ahead |",
    ]
    table.TABLE.write(tmp_path / "peers.csv", [ahead, behind])
    assert table.TABLE.read(tmp_path / "peers.csv") == [ahead, behind]


def test_a_fault_of_ours_is_no_lead() -> None:
    case = BIAS_ATTENTION_CASES[0]
    peer = launches.attention(case, 90)[0]
    ours = Launch(kernel=None, op="bias_attention", case=case.name, pass_name="fwd", dtype="bf16", args={}, grid=(1,),
                  elements=1, bytes=1)  # fmt: skip
    (theirs,) = peer.launches
    rows = {theirs.id: replace(failure(theirs, 90, "3", ""), status="ok", modelled_us=5.0)}
    found = table._compared("bias_attention/x/fwd", [failure(ours, 90, "3", "spilt")], [peer], rows)
    assert found.faults == f"{ours.id}: spilt"
    assert found.behind
    assert "behind at" in table.verdict([found])


@pytest.mark.parametrize("sizes", [(2, 2, 40, 24, 16), (3, 1, 32, 33, 8)])
def test_backward_is_right(sizes: tuple[int, int, int, int, int], device: str) -> None:
    b, h, n, m, d = sizes
    q, k, v = (torch.randn(b, length, h, d, device=device, requires_grad=True) for length in (n, m, m))
    bias = torch.randn(h, n, m, device=device, requires_grad=True)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * d**-0.5 + bias
    o = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)
    do = torch.randn(b, n, h, d, device=device)
    want = torch.autograd.grad(o, (q, k, v, bias), do)
    lse, delta = scores.logsumexp(-1).detach() * 1.4426950408889634, torch.empty(b, h, n, device=device)
    kernels.attention_delta[triton.cdiv(n, 16), b * h](delta, o.contiguous(), do, h, n, d, 16, 16)
    given = (q, k, v, do, bias, lse, delta, h, n, m, d, d**-0.5)
    keys, queries = triton.cdiv(m, 16), triton.cdiv(n, 32)
    for flex in (False, True):
        dq, dk, dv, dbias = (torch.zeros_like(x) for x in (q, k, v, bias))
        if flex:
            kernels.flex_backward[keys + queries, b * h](dq, dk, dv, dbias, *given, keys, 16, 16, 32, 16, 16)
        else:
            kernels.attention_keys[keys, b * h](dk, dv, *given, 16, 16, 16)
            kernels.attention_queries[queries, b * h](dq, dbias, *given, 0, 32, 16, 16)
        for got, right in zip((dq, dk, dv, dbias), want, strict=True):
            torch.testing.assert_close(got, right, atol=2e-5, rtol=1e-4)
