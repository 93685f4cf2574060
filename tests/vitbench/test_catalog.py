"""The catalog as data: what can be built, what is only quoted."""

from __future__ import annotations

import csv
import io

import pytest

from vitbench.bench.listing import print_models
from vitbench.bench.options import ListOptions
from vitbench.catalog import CatalogEntry, catalog, published
from vitbench.errors import InputError
from vitbench.models import MODELS
from vitbench.selection import match

pytestmark = pytest.mark.fast

QUOTED = [
    "coatnet_vit_rel",
    "coatnet_c_c_c_c",
    "coatnet_c_c_c_t",
    "coatnet_c_c_t_t",
    "coatnet_c_t_t_t",
    "conv_cross_vit_wodajo",
]


def test_models_are_the_rows_that_can_be_built() -> None:
    assert set(MODELS) == set(catalog())
    assert all(isinstance(entry, CatalogEntry) for entry in catalog().values())
    assert all(None not in (entry.params_m, entry.gmacs) for entry in catalog().values())


def test_rows_of_unpublished_sizes_are_listed_and_not_run() -> None:
    assert set(QUOTED) <= published().keys() - catalog().keys()
    assert not set(QUOTED) & set(match("all"))
    assert not set(QUOTED) & set(match("coatnet_*"))
    with pytest.raises(InputError, match=r"coatnet_c_c_t_t cannot be built: .*sizes not published; nearest: "):
        match("coatnet_c_c_t_t")


def test_a_blank_stays_blank_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    print_models(ListOptions(pattern="coatnet_c_c_t_t,coatnet_vit_rel,coatnet_0_cctt", format="csv"))
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert list(rows) == ["coatnet_vit_rel", "coatnet_c_c_t_t", "coatnet_0_cctt"]
    quoted, unknown, built = rows["coatnet_c_c_t_t"], rows["coatnet_vit_rel"], rows["coatnet_0_cctt"]
    assert (quoted["params_m"], quoted["gmacs"], quoted["resolution"], quoted["top1"]) == ("", "", "224", "82.39")
    assert (unknown["resolution"], unknown["top1"], unknown["training_data"]) == ("", "", "")
    assert (built["params_m"], built["top1"]) == ("25.03682", "")  # nobody published a figure for this network
    for format in ("table", "json"):
        print_models(ListOptions(pattern="coatnet_vit_rel", format=format))
        assert "coatnet_vit_rel" in capsys.readouterr().out
