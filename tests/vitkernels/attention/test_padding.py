"""bias_attention of large batches, whose kernels read the bias padded: the same demands as without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vitkernels.attention.bias import pays_to_pad
from vitkernels.attention.padding import padded_bias
from vitkernels.runtime.call import run_all

from . import test_masked_rows
from .problems import MODULES, bias_problem, check, launches

LOWEST = torch.finfo(torch.float32).min
SHAPES = {
    "keys-197": (2, 1, 17, 197, 32),
    "window-49": (3, 1, 49, 49, 32),
    "few-keys": (2, 1, 20, 49, 64),
    "keys-81": (2, 1, 66, 81, 64),
}
MASKED = ("scores held, no key beyond M", "bias held, keys of one tile", "streamed, keys beyond M")


@pytest.fixture(autouse=True)
def _pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULES["bias_attention"], "pays_to_pad", lambda *_: True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_padded_bias_matches_fp64(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = launches(monkeypatch)
    torch.manual_seed(0)
    check(bias_problem(*shape, dtype, device))
    assert [call.pass_name for call in made if call.pass_name.endswith("pad")] == ["fwd_pad", "bwd_pad"]


@pytest.mark.parametrize("arch", [80, 100])
def test_padded_bias_on_other_gpus(arch: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device != "cpu":
        pytest.skip("a GPU runs its own block sizes in every other test")
    monkeypatch.setattr(MODULES["bias_attention"], "arch_of", lambda _: arch)
    torch.manual_seed(0)
    check(bias_problem(*SHAPES["keys-81"], torch.float16, device))


@pytest.mark.parametrize("name", MASKED)
def test_masked_rows_are_what_they_are_without(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = test_masked_rows.SHAPES[name]
    test_masked_rows.test_a_row_of_low_finite_numbers_is_the_mean_of_its_values(shape, device, monkeypatch)
    test_masked_rows.test_a_row_of_minus_infinity_is_no_number_and_leaves_the_others(shape, device, monkeypatch)


@pytest.mark.parametrize(("N", "M"), [(66, 66), (100, 81), (193, 130)])
def test_one_program_holds_all_queries(N: int, M: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large batches; masked rows too keep both numbers of their log-sum-exp there."""
    monkeypatch.setattr("vitkernels.attention.blocks.PROGRAMS_WANTED", 1)
    made = launches(monkeypatch)
    torch.manual_seed(0)
    check(bias_problem(3, 2, N, M, 32, torch.float16, device))
    shape = (2, 1, N, M, 32, torch.float16, 1)
    test_masked_rows.test_a_row_of_low_finite_numbers_is_the_mean_of_its_values(shape, device, monkeypatch)
    test_masked_rows.test_a_row_of_minus_infinity_is_no_number_and_leaves_the_others(shape, device, monkeypatch)
    assert device != "cpu" or {call.pass_name for call in made if call.products == 5} == {"bwd_qkv"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_numbers_that_no_dtype_holds_in_units_of_log2(dtype: torch.dtype, device: str) -> None:
    bias = torch.tensor([[[LOWEST, -1e9, -float("inf"), float("inf"), float("nan"), 1.5, -LOWEST]]], device=device)
    out, call = padded_bias(bias, dtype, "fwd_pad")
    run_all([call])
    assert (out.shape, out.dtype) == ((1, 1, 16), torch.float32)
    scaled = torch.tensor([LOWEST, -1.4426950e9, -float("inf"), float("inf"), float("nan"), 2.1640425, -LOWEST])
    torch.testing.assert_close(out[0, 0, :7].cpu(), scaled, equal_nan=True)
    assert out[0, 0, 7:].isneginf().all()


def of_shape(B: int, M: int, dtype: torch.dtype) -> Tensor:
    return torch.empty((B, 12, M, 64), device="meta", dtype=dtype)


def test_where_padding_pays() -> None:
    assert pays_to_pad(of_shape(64, 197, torch.bfloat16), 197)
    assert pays_to_pad(of_shape(64, 197, torch.float16), 197)
    assert not pays_to_pad(of_shape(64, 196, torch.float16), 196)  # as long in fp32, and its rows are aligned
    assert not pays_to_pad(of_shape(8, 576, torch.bfloat16), 576)  # the bias is read by few images
    assert not pays_to_pad(of_shape(16, 197, torch.bfloat16), 197)  # is done before it
    assert not pays_to_pad(of_shape(4096, 49, torch.bfloat16), 49)  # the bias stands still in registers
