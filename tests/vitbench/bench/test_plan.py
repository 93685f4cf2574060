"""A grid becomes cases; bad options are refused with what would be right."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vitbench.fuzzing import understood
from vitbench import selection
from vitbench.bench import plan, telling
from vitbench.bench.plan import Case, Grid
from vitbench.catalog import catalog, format_resolution, parse_resolution
from vitbench.errors import InputError
from vitbench.ops.names import IMPLS
from vitbench.selection import match

pytestmark = pytest.mark.fast


def grid(**changes: object) -> Grid:
    options: dict[str, object] = {
        "models": ["cmt_s"],
        "impls": ["eager", "compile"],
        "modes": ["infer"],
        "dtypes": ["fp32"],
        "layouts": ["nchw"],
        "resolutions": ["224"],
        "batches": [1],
        "device": "cpu",
    }
    return Grid(**{**options, **changes})  # type: ignore[arg-type]


def test_id_holds_every_field_once() -> None:
    case = Case("cmt_s", "fused", "infer", "bf16", "nhwc", (224, 224), 64, "cuda")
    assert case.id == "cmt_s/fused/infer/bf16/nhwc/224/b64/cuda"
    assert Case("detr", "eager", "train", "fp32", "nchw", (800, 1066), 1, "cpu").id.split("/")[5] == "800x1066"


def test_expand_is_the_whole_product_and_ids_are_unique() -> None:
    cases = plan.expand(
        grid(models=["resnet50", "cmt_s"], modes=["infer", "train"], resolutions=["160", "224"], batches=[1, 4, 8])
    )
    assert len(cases) == 2 * 2 * 2 * 2 * 3
    assert len({case.id for case in cases}) == len(cases)


def test_implementations_of_one_case_are_one_group() -> None:
    groups = plan.group(plan.expand(grid(batches=[1, 4], resolutions=["160", "224"])))
    assert [len(members) for members in groups] == [2, 2, 2, 2]
    for members in groups:
        assert [case.impl for case in members] == ["eager", "compile"]
        assert len({case.comparison for case in members}) == 1


def test_native_and_factors_follow_the_model() -> None:
    def sizes(model: str, *resolutions: str) -> list[tuple[int, int]]:
        return [c.resolution for c in plan.expand(grid(models=[model], resolutions=resolutions, impls=["eager"]))]

    assert sizes("cmt_ti", "native") == [(160, 160)]
    assert sizes("cmt_b", "native", "x1") == [(256, 256)], "equal sizes are one case"
    assert sizes("vit_huge_patch14_224", "x1.5") == [(336, 336)]
    assert sizes("cmt_s", "x0.75", "x1.5") == [(160, 160), (320, 320)]


@pytest.mark.parametrize("model", sorted(catalog()))
@pytest.mark.parametrize("factor", ["x0.5", "x0.75", "x1.5", "x2.3"])
def test_factors_give_sizes_the_model_takes(model: str, factor: str) -> None:
    (case,) = plan.expand(grid(models=[model], resolutions=[factor], impls=["eager"]))
    multiple = catalog()[model].resolution_multiple
    assert all(side > 0 and side % multiple == 0 for side in case.resolution)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: selection.split("eagr", "impl", IMPLS), "eager"),
        (lambda: selection.split(" , ", "impl", IMPLS), "allowed"),
        (lambda: selection.split_batches("0"), "positive"),
        (lambda: selection.split_batches("4,-1"), "-1"),
        (lambda: selection.split_batches(""), "positive"),
        (lambda: selection.split_batches("1.5"), "1.5"),
        (lambda: selection.split_resolutions("224,abc"), "HEIGHTxWIDTH"),
        (lambda: selection.split_resolutions("0"), "'0'"),
        (lambda: parse_resolution("224x"), "224x"),
        (lambda: parse_resolution("²"), "²"),
        (lambda: match("vit_base_patch16_22"), "vit_base_patch16_224"),
        (lambda: match("nothing_*"), "nothing_"),
        (lambda: plan.expand(grid(models=["vit_base_patch16_224"], resolutions=["225"])), "224, 240"),
        (lambda: plan.expand(grid(models=["cmt_s"], resolutions=["224x230"])), "224, 256"),
    ],
)  # fmt: skip
def test_bad_options_say_what_would_be_right(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as raised:
        call()
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_match_keeps_catalog_order_and_drops_repeats() -> None:
    assert match("resnet18,cmt_s,resnet*") == [
        name for name in catalog() if name.startswith("resnet") or name == "cmt_s"
    ]
    assert match("all") == list(catalog())


#: What is typed on a command line, rightly and wrongly, and what nobody types.
WORDS = (
    "cmt_s", "resnet*", "all", "[", "native", "x0.75", "x1.2.3", "x.", "x0", "x999999", "224", "800x1066", "224x",
    "224..512:32", "1..99999999999", "1..999999999:1", "0", "-1", "9" * 5000, "bf16", "both", "torch.half", "10m",
    "1h30m", "\ud800", "²", "",
)  # fmt: skip
typed = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=4).map(",".join)
PARSERS = (
    lambda text: selection.match(text.replace(":", "")),  # other libraries are imported
    lambda text: selection.split(text, "dtype", selection.DTYPES),
    selection.split_batches,
    selection.split_resolutions,
    parse_resolution,
    telling.parse_duration,
)


@pytest.mark.fuzz
@given(st.sampled_from(PARSERS), typed)
def test_whatever_is_typed_is_understood_or_refused_in_one_line(parse, text: str) -> None:  # type: ignore[no-untyped-def]
    found = understood(parse, text)
    for word in (found or [])[:9] if parse is selection.split_resolutions else ():
        assert min(understood(selection.resolve, "resnet50", word) or (1,)) > 0


@pytest.mark.fuzz
@given(
    st.builds(
        Case,
        st.sampled_from(sorted(catalog())) | st.from_regex(r"(timm|transformers):[\w./-]+", fullmatch=True),
        *(st.sampled_from(known) for known in (IMPLS, selection.MODES, selection.DTYPES, selection.LAYOUTS)),
        st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
        st.integers(1, 10**9),
        st.sampled_from(["cpu", "cuda", "cuda:7"]),
    )
)
def test_an_id_says_which_case_it_is(case: Case) -> None:
    model, impl, mode, dtype, layout, size, batch, device = case.id.rsplit("/", 7)
    assert Case(model, impl, mode, dtype, layout, parse_resolution(size), int(batch[1:]), device) == case


@pytest.mark.fuzz
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_resolutions_round_trip(height: int, width: int) -> None:
    assert parse_resolution(format_resolution((height, width))) == (height, width)


@given(
    st.sets(st.sampled_from(["160", "192", "224", "256"]), min_size=1),
    st.sets(st.integers(1, 512), min_size=1, max_size=4),
    st.sets(st.sampled_from(selection.DTYPES), min_size=1),
)
def test_every_combination_is_planned_exactly_once(resolutions: set[str], batches: set[int], dtypes: set[str]) -> None:
    cases = plan.expand(grid(resolutions=sorted(resolutions), batches=sorted(batches), dtypes=sorted(dtypes)))
    planned = sorted((c.resolution[0], c.batch, c.dtype, c.impl) for c in cases)
    wanted = itertools.product(map(int, resolutions), batches, dtypes, ("eager", "compile"))
    assert planned == sorted(wanted)


def test_the_words_of_timm_and_torch_are_understood() -> None:
    assert selection.split("bfloat16,torch.float16,half,float32", "dtype", selection.DTYPES) == ["bf16", "fp16", "fp32"]
    assert selection.split("channels_last,nchw", "layout", selection.LAYOUTS) == ["nhwc", "nchw"]
    assert selection.split("inductor", "impl", IMPLS) == ["compile"]
    assert selection.split("both", "mode", selection.MODES) == ["infer", "train"]
    with pytest.raises(InputError, match="dtype 'bfloat61' is unknown"):
        selection.split("bfloat61", "dtype", selection.DTYPES)
