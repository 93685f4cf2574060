"""Resizing of learned tables."""

from __future__ import annotations

import pytest
import torch

from vitbench.models.resample import resample_grid, square_grid

pytestmark = pytest.mark.fast


def test_equal_grids_give_the_table_itself() -> None:
    table = torch.randn(1, 6, 4)
    assert resample_grid(table, (2, 3), (2, 3)) is table


def test_leading_axes_are_resized_one_by_one() -> None:
    table = torch.randn(2, 5, 4 * 6, 3)
    together = resample_grid(table, (4, 6), (7, 3))
    assert together.shape == (2, 5, 21, 3)
    torch.testing.assert_close(together[1, 4], resample_grid(table[1, 4], (4, 6), (7, 3)))


def test_rows_and_columns_are_not_confused() -> None:
    table = torch.arange(4.0).repeat_interleave(6).reshape(1, 24, 1)  # constant along each row
    resized = resample_grid(table, (4, 6), (8, 5)).reshape(8, 5)
    torch.testing.assert_close(resized, resized[:, :1].expand(8, 5))
    assert (resized[1:, 0] > resized[:-1, 0]).all()


def test_shrinking_averages() -> None:
    checkerboard = (torch.arange(64).reshape(8, 8).sum(1, keepdim=True) % 2 + torch.arange(8) % 2).float()
    resized = resample_grid(checkerboard.reshape(1, 64, 1), (8, 8), (2, 2))
    assert (resized - checkerboard.mean()).abs().max() < 0.05  # picking cells would give 0 or 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    table = torch.randn(1, 9, 2, dtype=dtype)
    resized = resample_grid(table, (3, 3), (4, 4))
    assert resized.dtype is dtype
    torch.testing.assert_close(resized.double(), resample_grid(table.double(), (3, 3), (4, 4)), rtol=0.01, atol=0.01)


def test_wrong_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 10, 2\] has 10 cells, not the 3 x 3 given"):
        resample_grid(torch.randn(1, 10, 2), (3, 3), (4, 4))


def test_square_grid() -> None:
    assert square_grid(196) == (14, 14)
    with pytest.raises(ValueError, match="192 cells is not square"):
        square_grid(192)
