"""Noise and photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitbench.errors import InputError
from vitbench.models import inputs
from vitbench.models.spec import Preprocessing


def test_image_i_is_the_same_whatever_the_batch() -> None:
    few, many = inputs.noise((32, 48), 2), inputs.noise((32, 48), 5)
    assert many.shape == (5, 3, 32, 48)
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[1])
    assert abs(many.mean().item()) < 0.03
    assert abs(many.std().item() - 1) < 0.03


def save(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    Image.new("RGB", size, colour).save(path)


def test_normalisation_is_the_familys(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (50, 80), (255, 0, 51))
    how = Preprocessing(mean=(0.5, 0.25, 0.1), std=(0.5, 0.25, 0.2))
    image = inputs.load_image(tmp_path / "a.png", (32, 32), how)
    assert image.shape == (3, 32, 32)
    for channel, value in enumerate((1.0, -1.0, 0.5)):
        assert image[channel].min().item() == pytest.approx(value, abs=1e-5)
        assert image[channel].max().item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (37, 37)])
def test_the_centre_is_kept_at_crop_pct(tmp_path: Path, size: tuple[int, int]) -> None:
    """A horizontal ramp: the crop covers crop_pct of the shorter side, centred."""
    width, height = size
    ramp = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], (height, width, 3)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    how = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), crop_pct=0.5, interpolation="bilinear")
    row = inputs.load_image(tmp_path / "ramp.png", (64, 64), how)[0, 32]
    covered = 0.5 * min(size) / width
    assert row[-1].item() - row[0].item() == pytest.approx(covered, abs=0.03)
    assert row.mean().item() == pytest.approx(0.5, abs=0.02)


def test_grey_and_transparent_pictures_become_rgb_and_few_are_repeated(tmp_path: Path) -> None:
    Image.new("L", (40, 40), 128).save(tmp_path / "a.jpg")
    Image.new("RGBA", (40, 40), (255, 0, 0, 10)).save(tmp_path / "b.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    batch = inputs.photographs(tmp_path, (32, 64), 5, Preprocessing())
    assert batch.shape == (5, 3, 32, 64)
    assert torch.equal(batch[0], batch[2])
    assert not torch.equal(batch[0], batch[1])


def test_bad_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        inputs.image_files(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match="no picture"):
        inputs.image_files(tmp_path)
    (tmp_path / "a.jpg").write_text("not a jpeg")
    with pytest.raises(InputError, match=r"a\.jpg is not a readable picture"):
        inputs.photographs(tmp_path, (32, 32), 1, Preprocessing())
