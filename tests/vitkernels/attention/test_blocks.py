"""Attention against fp64 in every way it is split into programs and tiles, also those of GPUs that are not here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vitkernels.runtime.call import Call

from .accuracy import run
from .problems import MODULES, bias_problem, check, gated_problem, launches, relative_problem

TALL_PROBLEMS = {
    "few-keys": lambda *x: bias_problem(2, 1, 200, 49, 64, *x),
    "few-keys-256": lambda *x: bias_problem(3, 1, 250, 49, 64, *x),
    "few-keys-512": lambda *x: bias_problem(2, 1, 500, 36, 52, *x),
    "keys-held-144": lambda *x: bias_problem(2, 2, 580, 144, 64, *x),
    "keys-held-81": lambda *x: bias_problem(1, 1, 330, 81, 52, *x),
    "last-tile-16": lambda *x: bias_problem(2, 1, 144, 144, 64, *x),
    "short-rows": lambda *x: bias_problem(2, 1, 130, 200, 32, *x),
    "wide-heads": lambda *x: bias_problem(1, 1, 150, 70, 128, *x),
    "relative-196": lambda *x: relative_problem(2, 1, (14, 14), 32, *x),
    "relative-144": lambda *x: relative_problem(2, 1, (12, 12), 32, *x),
    "relative-100": lambda *x: relative_problem(2, 2, (20, 5), 24, *x),
    "relative-last-64": lambda *x: relative_problem(3, 1, (20, 16), 32, *x),
    "relative-70": lambda *x: relative_problem(5, 2, (10, 7), 32, *x),  # dBias: narrow tiles of 8
    "relative-80": lambda *x: relative_problem(2, 1, (8, 10), 16, *x),  # narrow tiles of 16
    "relative-192": lambda *x: relative_problem(2, 1, (12, 16), 32, *x),
    "relative-210": lambda *x: relative_problem(1, 1, (14, 15), 32, *x),
    "relative-256": lambda *x: relative_problem(1, 1, (16, 16), 32, *x),
    "gated-196": lambda *x: gated_problem(3, 1, 196, 48, *x),
    "gated-last-16": lambda *x: gated_problem(2, 1, 144, 64, *x),
}


@pytest.mark.parametrize("name", TALL_PROBLEMS)
def test_tall_tiles_match_fp64(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 128 and 256 queries, or of all, which large batches get, at a batch that the interpreter can bear."""
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    torch.manual_seed(0)
    check(TALL_PROBLEMS[name](torch.float16, device))


def test_a_short_last_tile_of_queries(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CoAtNet's own path at 224 px: four images or more share a bias tile, and the last tile has 16 queries."""
    made = launches(monkeypatch)
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    torch.manual_seed(0)
    for B, H, grid, D in ((4, 1, (14, 14), 32), (5, 2, (10, 7), 20)):
        check(relative_problem(B, H, grid, D, torch.float16, device))
    check(bias_problem(7, 1, 70, 49, 32, torch.float16, device))
    assert all(call.args["TAIL"] for call in made if call.pass_name == "fwd")


def test_few_keys_get_tall_tiles_or_stand_still(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CMT's own paths in its first stages; not where a sixth of the tile would be padding, nor with as many keys."""
    made = launches(monkeypatch)
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    if device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("tiles are as tall on compute capability 9.0 only")
    for N, M in ((250, 49), (220, 49), (250, 100), (400, 100)):
        check(bias_problem(1, 1, N, M, 64, torch.float16, device))
    made = [call for call in made if call.pass_name == "fwd"]
    assert [call.args["BLOCK_N"] for call in made] == [256, 128, 128, 128]
    assert [call.kernel.fn.__module__.split(".")[-1] for call in made] == [*["bias_held"] * 3, "keys_held"]


@pytest.mark.parametrize(("B", "D", "short"), [(4, 32, 1), (5, 32, 2), (3, 64, 1)])
def test_a_short_last_group_of_images(B: int, D: int, short: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = launches(monkeypatch)
    torch.manual_seed(0)
    check(bias_problem(B, 1, 20, 220, D, torch.float16, device))
    if device == "cpu":  # as on sm_90
        assert next(call for call in made if call.pass_name == "fwd").args["SHORT"] == short


@pytest.mark.parametrize(("N", "M", "D", "half"), [(530, 49, 46, True), (530, 70, 16, True), (300, 20, 16, False)])
def test_spans_of_queries(N: int, M: int, D: int, half: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = launches(monkeypatch)
    torch.manual_seed(0)
    check(bias_problem(1, 1, N, M, D, torch.float16 if half else torch.float32, device))
    assert {"bwd_sum_dk", "bwd_sum_dv"} <= {call.pass_name for call in made}


OTHER_GPU_PROBLEMS = {
    "window-49": lambda *x: bias_problem(3, 2, 49, 49, 32, *x),
    "few-keys": lambda *x: bias_problem(2, 1, 70, 25, 64, *x),
    "long-keys": lambda *x: bias_problem(3, 1, 66, 220, 20, *x),
    "wide-heads": lambda *x: bias_problem(2, 1, 66, 70, 76, *x),
    "relative-70": lambda *x: relative_problem(5, 1, (10, 7), 32, *x),
    "relative-144": lambda *x: relative_problem(2, 1, (12, 12), 48, *x),
    "gated-70": lambda *x: gated_problem(3, 1, 70, 48, *x),
    "gated-144": lambda *x: gated_problem(2, 1, 144, 64, *x),
}


@pytest.mark.parametrize("arch", [80, 100])  # 120 has the launches of 80, as the next test shows
@pytest.mark.parametrize("programs", [1, 384])
@pytest.mark.parametrize("name", OTHER_GPU_PROBLEMS)
def test_blocks_by_arch(name: str, programs: int, arch: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device != "cpu":
        pytest.skip("a GPU runs its own block sizes in every other test")
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", programs)
    for module in MODULES.values():
        monkeypatch.setattr(module, "arch_of", lambda _: arch)
    torch.manual_seed(0)
    check(OTHER_GPU_PROBLEMS[name](torch.float16, device))


@pytest.mark.parametrize("name", OTHER_GPU_PROBLEMS)
def test_consumer_gpus_get_the_launches_of_sm_80(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for warps and stages, which the interpreter does not know: what is right in one is right in the other."""
    made: list[Call] = []
    for module in MODULES.values():
        monkeypatch.setattr(module, "run_all", made.extend)
    problem = OTHER_GPU_PROBLEMS[name](torch.float16, device)

    def launches_on(arch: int) -> list[tuple[object, ...]]:
        for module in MODULES.values():
            monkeypatch.setattr(module, "arch_of", lambda _: arch)
        made.clear()
        run(problem.kernel, problem.inputs, problem.grad)
        arguments = ({n: x.shape if isinstance(x, Tensor) else x for n, x in call.args.items()} for call in made)
        return [(call.kernel, call.grid, args) for call, args in zip(made, arguments, strict=True)]

    for programs in (1, 384):
        monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", programs)
        assert launches_on(120) == launches_on(89) == launches_on(80) != []
    assert launches_on(100) != launches_on(80)
