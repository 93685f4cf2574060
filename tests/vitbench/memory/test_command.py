"""`vitbench memory`: rows, verdicts, largest batches, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from vitbench.errors import InputError
from vitbench.memory import command, plan, predict, store
from vitbench.memory.options import MemoryOptions
from vitbench.memory.predict import ask
from vitbench.memory.reserve import CONTEXT_MIB, contexts_mib
from vitbench.memory.setting import LARGEST_BATCH, MIB, Limit, Setting, workspace_bytes
from vitbench.variant import PUBLISHED, Variant

SMALL = {"model": "vit_tiny_patch16_224,resnet18", "resolution": "64", "batch": "1,8"}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def rows(**given: object) -> list[plan.Row]:
    return command.predicted(MemoryOptions(**{**SMALL, **given}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def some(cache: object) -> list[plan.Row]:
    return rows(gpu="A100 80GB,RTX 4090", mode="infer,train", resolution="64,100")


def test_a_row_for_every_case_and_card_adds_up(some: list[plan.Row]) -> None:
    assert len(some) == 2 * 2 * 2 * 2 * 2
    for row in some:
        if row.model.startswith("vit") and row.resolution == "100":
            assert row.peak_mib is None
            assert row.reason.startswith("vit_tiny_patch16_224 takes multiples of 16 px, not 100")
            continue
        parts = [row.weights_mib, row.gradients_mib, row.optimizer_mib, row.activations_mib, row.workspace_mib]
        assert sum(part or 0 for part in parts) == pytest.approx(row.peak_mib)
        assert row.verdict == "fits"
        assert (row.largest_batch or 0) > 1000
        assert (row.reserve_mib or 0) >= CONTEXT_MIB
        assert ("cuDNN" in row.reason) == row.model.startswith("resnet")
        assert ("at least 1,048,575" in row.reason) == (row.largest_batch == LARGEST_BATCH)


def test_cards_stand_beside_each_other(some: list[plan.Row]) -> None:
    first, second = some[:2]
    assert (first.gpu, second.gpu) == ("A100 80GB", "RTX 4090")
    assert first.batch == second.batch
    assert (first.largest_batch or 0) > 3 * (second.largest_batch or 0)


def test_csv_and_json_hold_the_same(some: list[plan.Row]) -> None:
    table = list(csv.DictReader(io.StringIO(command.as_csv(some))))
    assert tuple(table[0]) == command.COLUMNS
    loaded = json.loads(command.as_json(some))
    assert [row["model"] for row in table] == [row["model"] for row in loaded]
    empty = next(row for row in table if row["resolution"] == "100" and row["model"].startswith("vit"))
    assert empty["peak_mib"] == ""


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    setting = Setting("vit_tiny_patch16_224", (64, 64), "train", "fp32", "sdpa")
    limit = Limit(400 * MIB, workspace_bytes(80, "train"))
    found = ask(setting, [2], limit.workspace, [limit])
    largest = found.largest
    assert largest is not None
    assert max(found.verified) >= largest  # a trace of a batch that is no smaller agrees
    around = ask(setting, [largest, largest + 1], limit.workspace, [limit])
    assert around.fits[largest, limit]
    assert not around.fits[largest + 1, limit]
    assert around.predictions[largest].peak <= 400


def test_other_forms_of_a_model_are_predicted() -> None:
    published = Setting("vit_tiny_patch16_224", (64, 64), "infer", "fp32", "sdpa", optimizer="none")

    def peak(variant: Variant) -> float:
        return ask(replace(published, variant=variant), [1], 0).predictions[1].peak

    fewer = peak(PUBLISHED) - peak(Variant(num_classes=10))
    assert fewer == pytest.approx(990 * 193 * 4 / MIB, abs=990 * 4 / MIB)  # a row of the classifier and its bias each
    refused = ask(replace(published, variant=Variant(checkpointing=True)), [1], 0).reason
    assert refused.startswith("--checkpointing: it has no gradient checkpointing")


def test_what_is_beyond_the_search_is_said_as_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    given = {**SMALL, "model": "vit_tiny_patch16_224", "mode": "infer", "dtype": "bf16", "gib": 300.0}
    given["batch"] = f"{LARGEST_BATCH + 1},999999999"
    assert command.run(MemoryOptions(**given)) == 0  # type: ignore[arg-type]
    first, second, *_ = (line for line in capsys.readouterr().out.splitlines() if line.startswith("vit_tiny"))
    assert "fits" in first
    assert "does not fit" in second
    assert "at least 1,048,575" in first


def test_no_batch_fits_where_the_weights_do_not() -> None:
    found = rows(model="vit_tiny_patch16_224", gib=0.5, mode="train", batch="2")
    assert [(row.verdict, row.largest_batch, row.gpu) for row in found] == [("does not fit", 0, "0.5 GiB")]


def test_what_cannot_be_predicted_is_a_row_with_the_reason() -> None:
    found = rows(model="vit_tiny_patch16_224", impl="compile,fused", mode="infer", batch="1")
    assert [row.peak_mib for row in found] == [None, None]
    assert "only the compiler knows" in found[0].reason
    assert "no fused implementation" in found[1].reason


def test_the_next_call_traces_nothing(some: list[plan.Row], monkeypatch: pytest.MonkeyPatch) -> None:
    from vitbench.memory import find

    monkeypatch.setattr(find, "Trace", lambda *_: pytest.fail("traced again"))
    assert rows(gpu="A100 80GB,RTX 4090", mode="infer,train", resolution="64,100") == some


def test_another_code_is_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.folder()
    monkeypatch.setattr(store, "fingerprint", lambda: "another")
    assert store.folder().parent == before.parent
    setting = Setting("resnet18", (64, 64), "infer", "fp32", "eager")
    assert not predict.is_known(setting, [1], 0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gpu": "RTX 4091"}, "did you mean RTX 4090"),
        ({"gib": 0.0}, "--gib 0 is no amount of memory"),
        ({"gib": 24.0, "gpu": "A10"}, "give one of them"),
        ({"optimizer": "adam"}, "did you mean adamw"),
        ({"dtype": "fp61"}, "did you mean fp16"),
        ({"resolution": "512..224"}, "224..512:32"),
        ({"gradient_as_bucket_view": True}, "give --ddp too"),
        ({"batch": "0"}, "not a positive whole number"),
        ({"num_classes": 0}, "--num-classes 0 should be 1 or more"),
        ({"drop_path": 0.1, "mode": "infer"}, "--drop-path acts in training"),
        ({"reparam": True}, "give --mode infer"),
    ],
)
def test_bad_input_is_one_line_that_says_what_would_be_right(given: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as error:
        rows(**given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_formats_and_folders_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean csv"):
        command.run(MemoryOptions(format="cvs"))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match="name a folder"):
        command.run(MemoryOptions(out=file))


def test_files_and_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {**SMALL, "model": "resnet18", "resolution": "64,96", "mode": "infer", "out": tmp_path / "new"}
    assert command.run(MemoryOptions(**given)) == 0  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert "context" in said.out
    assert "without the workspaces that cuDNN chooses" in said.out
    assert (tmp_path / "new" / "memory.csv").exists()


def test_the_context_is_the_median_of_reports() -> None:
    assert min(contexts_mib()) < CONTEXT_MIB < max(contexts_mib())
    assert all(0 < context < 1024 for context in contexts_mib())


def test_the_list_of_cards_says_where_it_is_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(MemoryOptions(gpu="list")) == 0
    said = capsys.readouterr().out
    assert "79.25  HiDream-ai/VAREdit#6" in said
    assert "estimated" in said


def test_other_forms_are_options_as_benchs() -> None:
    published, fewer = (
        rows(model="vit_tiny_patch16_224", batch="1"),
        rows(model="vit_tiny_patch16_224", batch="1", num_classes=10, drop_path=0.1),
    )
    for before, after in zip(published, fewer, strict=True):
        assert (before.weights_mib or 0) - (after.weights_mib or 0) == pytest.approx(990 * 193 * 4 / MIB, abs=0.01)
    assert (fewer[1].largest_batch or 0) < (
        published[1].largest_batch or 0
    )  # each block's masks take more than classes
    (refused,) = rows(model="resnet18", batch="1", mode="infer", reparam=True)
    assert refused.reason.startswith("--reparam: no branch of it can be merged")
