"""Attention against fp64 in every way it is split into programs and tiles, also those of GPUs that are not here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vitkernels.attention.blocks import images_in_waves
from vitkernels.runtime.call import Call, cdiv

from .accuracy import run
from .problems import MODULES, bias_problem, check, gated_problem, launches, relative_problem

TALL_PROBLEMS = {
    "few-keys": lambda *x: bias_problem(2, 1, 200, 49, 64, *x),
    "few-keys-250": lambda *x: bias_problem(3, 1, 250, 49, 64, *x),
    "few-keys-500": lambda *x: bias_problem(2, 1, 500, 36, 52, *x),
    "keys-144": lambda *x: bias_problem(2, 2, 580, 144, 64, *x),
    "keys-81": lambda *x: bias_problem(1, 1, 330, 81, 52, *x),
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
    """Tiles of 128 queries, or of all, which large batches get, at a batch that the interpreter can bear."""
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    torch.manual_seed(0)
    check(TALL_PROBLEMS[name](torch.float16, device))


@pytest.mark.parametrize(("M", "kernel"), [(49, "bias_held"), (64, "bias_held"), (65, "streamed"), (144, "streamed")])
def test_the_bias_is_held_where_a_tile_has_all_keys(
    M: int, kernel: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = launches(monkeypatch)
    torch.manual_seed(0)
    check(bias_problem(3, 1, 70, M, 32, torch.float16, device))
    forward = next(call for call in made if call.pass_name == "fwd")
    assert forward.kernel.fn.__module__.split(".")[-1] == kernel


@pytest.mark.parametrize(("N", "M", "D"), [(20, 220, 32), (70, 65, 64), (66, 144, 40)])
def test_a_last_image_without_a_second_one(
    N: int, M: int, D: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of images share the bias where programs abound; of three the second pair begins with the first's end."""
    made = launches(monkeypatch)
    monkeypatch.setattr("vitkernels.attention.forward.plan.multiprocessors_of", lambda *_: 1)
    torch.manual_seed(0)
    check(bias_problem(3, 1, N, M, D, torch.float16, device))
    check(relative_problem(3, 2, (10, 7), D, torch.float16, device))
    if device == "cpu":  # as on sm_90
        assert [call.args["IMAGES"] for call in made if call.pass_name == "fwd"] == [2, 2]


@pytest.mark.parametrize("multiprocessors", [1, 20, 84, 108, 132, 148])
@pytest.mark.parametrize(("batch", "programs"), [(64, 49), (4096, 3), (5, 1), (1, 7), (64, 24)])
def test_images_of_a_program_leave_no_multiprocessor_much_to_do_alone(
    batch: int, programs: int, multiprocessors: int
) -> None:
    images = images_in_waves(batch, programs, multiprocessors, resident=4)
    busiest = cdiv(cdiv(batch, images) * programs, multiprocessors) * images
    assert 1 <= images <= batch
    assert busiest <= max(1.25 * batch * programs / multiprocessors, 3)


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


# 86, 89 and 120 have the launches of 80 but for wide heads, as the next test shows.
@pytest.mark.parametrize(
    ("name", "arch"), [*((name, arch) for name in OTHER_GPU_PROBLEMS for arch in (80, 100)), ("wide-heads", 120)]
)
@pytest.mark.parametrize("programs", [1, 384])
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
    """But for warps and stages, which the interpreter does not know: what is right in one is right in the other.

    Wide heads get smaller tiles, as a program has fewer registers there.
    """
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
        assert launches_on(120) == launches_on(89) != []
        assert (launches_on(120) == launches_on(80)) == (name != "wide-heads")
    assert launches_on(100) != launches_on(80)
