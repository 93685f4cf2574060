"""The table of cards: names are found, figures agree with one another and with what the audit models."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from vitbench import cards
from vitbench.audit.model.chips import CHIPS, chip_named, chip_of
from vitbench.errors import InputError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("nvidia geforce rtx 4090", "RTX 4090"),
        ("l4", "L4"),
        ("H100-PCIe", "H100 PCIe"),
        ("H100", "H100 SXM"),
        ("A100 SXM4 80GB", "A100 80GB"),
    ],
)
def test_cards_are_found_by_their_names(asked: str, name: str) -> None:
    assert cards.find(asked).name == name


def test_an_unknown_card_is_told_what_comes_close() -> None:
    with pytest.raises(
        InputError, match=r"'A100'; did you mean A100 80GB or A100 40GB or A100 80GB PCIe or A100 40GB PCIe\?"
    ):
        cards.find("A100")
    with pytest.raises(InputError, match=r"no card is called 'RTX 4099'.*RTX 4090"):
        cards.find("RTX 4099")
    with pytest.raises(InputError, match="--card list"):
        cards.find("?")


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Max-Q"),
    ],
)
def test_devices_are_told_apart(device: str, name: str) -> None:
    found = cards.of_device(device)
    assert found is not None
    assert found.name == name


def test_an_unknown_device_has_no_card() -> None:
    assert cards.of_device("Tesla T4") is None


@pytest.mark.parametrize("card", cards.CARDS, ids=lambda card: card.name)
def test_the_matrix_peak_is_a_whole_rate_at_a_clock_of_the_card(card: cards.Card) -> None:
    """The peak is a power of two of multiply-adds a clock, at a clock within an eighth of the highest one."""
    clock = card.fp16_tflops * 1e3 / (2 * card.multiprocessors * card.matrix_multiply_adds)
    assert clock == pytest.approx(card.boost_ghz, rel=0.125)
    assert card.source
    assert card.limits.l1_kib > card.limits.shared_kib


def test_names_are_unique() -> None:
    assert len({card.name for card in cards.CARDS}) == len({card.device for card in cards.CARDS}) == len(cards.CARDS)


def test_every_architecture_has_a_usual_card_and_none_beats_its_peaks() -> None:
    assert [CHIPS[arch].name for arch in (80, 90, 100)] == ["A100 80GB", "H200", "B200"]
    for card in cards.CARDS:
        chip = chip_named(card.name)
        assert chip_of(card.arch).arch == chip.arch == card.arch
        assert chip.dram_bytes_per_us < card.memory_gb_s * 1e3
        assert chip.matrix_flops_per_us < card.fp16_tflops * 1e6
        assert chip.clock_ghz <= card.boost_ghz


def test_the_listing_has_a_line_for_every_card(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for options in ("audit", "--card"), ("memory", "--gpu"):
        lines = command(*options, "list").stdout.splitlines()
        assert len(lines) == 1 + len(cards.CARDS)
        assert any(line.startswith("RTX 5090 ") and "sm_120" in line for line in lines)
