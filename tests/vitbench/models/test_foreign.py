"""Models of other libraries by name: found, refused, counted, fused and measured as our own are."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from vitbench import selection
from vitbench.bench import command, predict, worker
from vitbench.bench.messages import Message, Result
from vitbench.bench.options import SweepOptions
from vitbench.bench.plan import Case
from vitbench.errors import InputError
from vitbench.models import create_model, foreign, transformers_configs, unserved
from vitbench.models.transformers_configs import Config
from vitbench.results.row import Found, Speed

pytestmark = pytest.mark.usefixtures("as_forked")


@pytest.mark.parametrize(("pattern", "says"), [
    ("timm:convnext_tny", "did you mean convnext_tiny"),
    ("timm:zzzzzz", "models, such as"),
    ("timm:swinn*", "did you mean swin* or swinv2*"),
    ("tim:convnext_tiny", "unknown library 'tim' in 'tim:convnext_tiny': did you mean timm?"),
    ("transformers:swin-tiny", "swin-tiny-patch4-window7-224"),
    ("torchvision:swin", "swin_"),
])  # fmt: skip
def test_unknown_names_are_refused_with_near_ones(pattern: str, says: str, timm: Any) -> None:
    with pytest.raises(InputError, match="unknown") as error:
        selection.match(pattern)
    assert says in str(error.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    foreign.load.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"need the package timm, which is not installed; `pip install timm`"):
        selection.match("cmt_s,timm:convnext_tiny")
    foreign.load.cache_clear()


def test_names_wildcards_and_own_models_go_together(timm: Any) -> None:
    names = selection.match("timm:convnext_tiny,cmt_s,timm:swin_t*_window7_224,timm:swin_tiny_patch4_window7_224")
    assert names == ["cmt_s", "timm:convnext_tiny", "timm:swin_tiny_patch4_window7_224"]
    entry = selection.entry("timm:swin_base_patch4_window12_384")
    assert (entry.resolution, entry.params_m, entry.family) == ((384, 384), None, "timm")


PARAMS_M = {
    "timm:swin_tiny_patch4_window7_224": 28.29,
    "timm:pvt_v2_b0": 3.67,
    "torchvision:swin_t": 28.29,
    "transformers:segformer-b0": 3.58,
}


@pytest.mark.parametrize("name", PARAMS_M)
def test_parameters_and_macs_are_counted(name: str, timm: Any) -> None:
    count = predict.count(name, (224, 224))
    assert count.params_m == pytest.approx(PARAMS_M[name], abs=0.01)
    assert count.gmacs > 0.4
    assert count.uncounted_ops == ()


@pytest.mark.parametrize(("name", "told"), [
    ("timm:swin_tiny_patch4_window7_224", "12 WindowAttention"),
    ("timm:convnext_atto", "12 Conv2d"),
    ("torchvision:swin_t", "12 ShiftedWindowAttention"),
    ("transformers:segformer-b0", "8 SegformerMixMLP"),
])  # fmt: skip
def test_fused_is_fuse_applied_under_the_same_names(name: str, told: str, timm: Any) -> None:
    eager, fused = (create_model(name, impl, (64, 64)) for impl in ("eager", "fused"))
    assert foreign.swapped(fused) == f"fuse swapped {told}"
    assert foreign.swapped(eager) == ""
    fused.load_state_dict(eager.state_dict(), strict=True)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A SegFormer small enough for the interpreter."""
    options = {
        "num_encoder_blocks": 1, "depths": [1], "sr_ratios": [2], "hidden_sizes": [16], "patch_sizes": [7],
        "strides": [4], "num_attention_heads": [1], "mlp_ratios": [2],
    }  # fmt: skip
    monkeypatch.setitem(transformers_configs.CONFIGS, "segformer-tiny", Config("Segformer", options, False))
    return "transformers:segformer-tiny"


def found_of(case: Case) -> Found:
    told: list[Message] = []
    options = SweepOptions(min_time=0.01, max_time=0.02, passes=("latency", "memory"))
    worker.Worker(options, told.append).run_group([case])
    (result,) = (message for message in told if isinstance(message, Result))
    return result.found


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_bench_verifies_and_says_what_was_swapped(mode: str, tiny: str, timm: Any) -> None:
    case = Case(tiny, "fused", mode, "fp32", "nhwc", (32, 32), 2, "cpu")
    found = found_of(case)
    assert (found.status, found.health.valid) == ("ok", False)
    assert found.reason.startswith("fuse swapped 1 SegformerMixMLP; right in Triton's interpreter")
    assert found.verified.rel_err <= found.verified.rel_err_limit
    assert found.memory.predicted_mem_mib > 0


def test_what_fuse_cannot_serve_is_unsupported_and_untimed(timm: Any) -> None:
    found = found_of(Case("timm:resnet18", "fused", "infer", "fp32", "nchw", (32, 32), 1, "cpu"))
    assert found.status == "unsupported"
    assert "vitkernels.fuse finds no module in it" in found.reason
    assert found.speed == Speed()
    with pytest.raises(InputError, match="has no fused implementation"):
        create_model("timm:resnet18", "fused")
    assert predict.memory_mib(Case("timm:resnet18", "fused", "infer", "fp32", "nchw", (32, 32), 1, "cpu")) is None


def test_a_dry_run_says_what_is_unsupported(timm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (("timm:resnet18", "eager"), ("timm:resnet18", "sdpa"), ("timm:resnet18", "fused"), ("resnet18", "fused"))
    command.print_plan([Case(name, impl, "infer", "fp32", "nchw", (32, 32), 1, "cpu") for name, impl in asked])
    _, eager, sdpa, fused, own, about, _ = capsys.readouterr().out.splitlines()
    assert "unsupported" not in eager
    assert sdpa.endswith("unsupported: timm chooses its own attention; its models have " + ", ".join(foreign.IMPLS))
    assert "unsupported: vitkernels.fuse finds no module in it that a kernel computes" in fused
    assert "  unsupported: it " in own
    assert about.startswith("about 0m")


def test_a_dry_run_goes_on_after_what_cannot_be_predicted(timm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (("torchvision:vit_b_32", (32, 64)), ("timm:coat_tiny", (80, 80)), ("timm:resnet10t", (32, 32)))
    code = command.print_plan([Case(name, "eager", "infer", "fp32", "nchw", px, 1, "cpu") for name, px in asked])
    _, torchvision, coat, resnet, _, last = capsys.readouterr().out.splitlines()
    assert torchvision.split(maxsplit=1)[1] == "error: ValueError: the model takes square images"
    assert coat.startswith("timm:coat_tiny/eager/infer/fp32/nchw/80/b1/cpu ")
    assert coat.split(maxsplit=1)[1].startswith("error: RuntimeError: ")
    assert 5 < float(resnet.split()[1]) < 6
    assert (code, last) == (1, "3 cases; nothing was measured; 2 would fail")


@pytest.mark.parametrize("impl", ["sdpa", "flex"])
def test_attention_is_the_librarys_own(impl: str, timm: Any) -> None:
    assert "chooses its own attention" in (unserved("timm:pvt_v2_b0", impl) or "")
    found = found_of(Case("timm:pvt_v2_b0", impl, "infer", "fp32", "nchw", (32, 32), 1, "cpu"))
    assert (found.status, found.reason[:4]) == ("unsupported", "impl")


def test_a_size_that_a_model_cannot_take_is_one_line(timm: Any) -> None:
    with pytest.raises(InputError, match="square images"):
        create_model("transformers:beit-base-patch16-224", resolution=(64, 32))


def test_classes_that_only_choose_another_are_no_models() -> None:
    names = foreign.LIBRARIES["transformers"].names()
    assert "ViTForImageClassification" in names
    assert not [name for name in names if name.startswith("Auto")]
