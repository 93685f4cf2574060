"""Counts against arithmetic, and against the products into which torch takes an einsum apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vitbench.measure.einsum_macs import einsum_macs

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("equation", "shapes", "path", "macs"),
    [
        ("bhwc,hkc->bhwk", [(3, 11, 17, 19), (11, 23, 19)], None, 3 * 11 * 17 * 19 * 23),
        ("...ij,...jk->...ik", [(4, 1, 2, 3), (5, 3, 6)], None, 4 * 5 * 2 * 3 * 6),
        ("ii,ij->j", [(4, 4), (4, 3)], None, 12),
        ("ij,jk", [(3, 4), (4, 5)], None, 60),
        ("bij,bj->bi", [(1, 3, 4), (6, 4)], None, 72),
        ("ij,kj->k", [(3, 4), (5, 4)], None, 20),  # i is summed first
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], None, 2 * 3 * 4 + 2 * 4 * 5),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], [1, 2, 0, 1], 3 * 4 * 5 + 2 * 3 * 5),
        ("i,j->ij", [(3,), (4,)], None, 0),
        ("ij->i", [(3, 4)], None, 0),
    ],
)
def test_by_arithmetic(equation: str, shapes: list[tuple[int, ...]], path: list[int] | None, macs: int) -> None:
    assert einsum_macs(equation, shapes, path) == macs


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_is_what_torch_computes(data: st.DataObject) -> None:
    sizes = dict(zip("abcdef", data.draw(st.tuples(*[st.integers(2, 5)] * 6)), strict=True))
    terms = data.draw(st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=4))
    known = sorted(set("".join(terms)))
    output = "".join(data.draw(st.lists(st.sampled_from(known), unique=True)))
    equation = ",".join(terms) + "->" + output
    ones = [data.draw(st.sets(st.sampled_from(term), max_size=1)) for term in terms]  # broadcast
    shapes = [tuple(1 if name in one else sizes[name] for name in term) for term, one in zip(terms, ones, strict=True)]
    with FlopCounterMode(display=False) as counter:
        torch.einsum(equation, *(torch.empty(shape, device="meta") for shape in shapes))
    assert einsum_macs(equation, shapes) * 2 == counter.get_total_flops()
