"""The search for the largest batch, and plans and curves for cards that are not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitbench.bench import command, max_batch
from vitbench.bench.options import BenchOptions, MaxBatchOptions, MemoryCurvesOptions
from vitbench.errors import InputError
from vitbench.measure import device as devices

needs_no_gpu = pytest.mark.skipif(devices.gpu_count() > 0, reason="is about machines without a GPU")


@pytest.mark.parametrize("largest", [0, 1, 2, 63, 64, 1000, max_batch.LARGEST])
@pytest.mark.parametrize("first", [1, 60, 64, 1200, 10**7])
def test_the_largest_batch_is_found_from_any_guess(largest: int, first: int) -> None:
    asked: list[int] = []

    def fits(batch: int) -> bool:
        assert batch not in asked
        assert 1 <= batch <= max_batch.LARGEST
        asked.append(batch)
        return batch <= largest

    assert max_batch.search(fits, first) == largest
    assert len(asked) <= 45


def test_a_good_guess_needs_few_tries() -> None:
    asked: list[int] = []
    max_batch.search(lambda batch: asked.append(batch) or batch <= 1010, 1000)
    assert len(asked) <= 8


@needs_no_gpu
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    with pytest.raises(InputError, match=r"needs an NVIDIA GPU.*; `vitbench memory` predicts") as error:
        max_batch.run(MaxBatchOptions())
    assert "--device" not in str(error.value)
    with pytest.raises(InputError, match="unknown model 'resnet5': did you mean resnet50"):  # what is wrong here, too
        max_batch.run(MaxBatchOptions(model="resnet5"))
    with pytest.raises(InputError, match="`vitbench memory` predicts"):
        max_batch.run(MaxBatchOptions(device="cpu"))


def test_a_plan_for_a_card_says_what_will_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = BenchOptions(
        model="vit_tiny_patch16_224", resolution="64", batch="2,999999", impl="eager", dry_run=True, gpu="rtx 4080"
    )
    assert command.bench(given) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if "/cuda" in line)
    assert "fits RTX 4080 (up to batch" in first
    assert "will not fit RTX 4080 (up to batch" in second


def test_a_card_is_for_plans_alone() -> None:
    with pytest.raises(InputError, match="give --dry-run"):
        command.bench(BenchOptions(gpu="RTX 4080"))
    with pytest.raises(InputError, match="did you mean RTX 4080"):
        command.bench(BenchOptions(gpu="RTX 4081", dry_run=True))
    with pytest.raises(InputError, match="give one of them"):
        command.memory_curves(MemoryCurvesOptions(gpu="RTX 4080", device="cpu"))


@needs_no_gpu
def test_curves_of_a_card_that_is_not_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = MemoryCurvesOptions(
        model="vit_tiny_patch16_224,resnet18",
        gpu="A10",
        resolution="32,64",
        batch="1,4",
        mode="infer",
        out=tmp_path / "curves.csv",
    )
    assert command.memory_curves(given) == 0
    assert "A10" in capsys.readouterr().out
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 2 * 2 * 2
