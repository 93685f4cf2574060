"""Stochastic depth drops whole samples, and keeps the mean."""

from __future__ import annotations

import pytest
import torch

from vitbench.models.drop_path import DropPath

pytestmark = pytest.mark.fast


def test_drop_path_drops_samples_and_only_in_training() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3)
    y = drop(x)
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 4 / 3]))
    assert (y[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert drop.eval()(x) is x
