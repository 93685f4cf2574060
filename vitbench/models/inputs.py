"""What goes into the models: seeded noise, or real photographs with the family's own preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vitbench.catalog import Resolution
from vitbench.errors import InputError

if TYPE_CHECKING:
    from vitbench.models.spec import Preprocessing

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def noise(resolution: Resolution, batch: int, seed: int = 0) -> Tensor:
    """[batch, 3, height, width] fp32 standard normal; image i is the same whatever the batch."""
    height, width = resolution
    images = torch.empty(batch, 3, height, width)
    for i in range(batch):
        images[i].normal_(generator=torch.Generator().manual_seed(seed * 100_003 + i))
    return images


def image_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder, sorted by name.

    Raises: InputError when there is no folder or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"--images {folder} is not a folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"--images {folder} has no picture in it (looked for {', '.join(IMAGE_SUFFIXES)})")
    return files


def load_image(path: Path, resolution: Resolution, how: Preprocessing) -> Tensor:
    """One photograph as [3, height, width] fp32: resize, centre crop, normalise.

    Raises: InputError when the file is not a picture that Pillow reads.
    """
    from PIL import Image, UnidentifiedImageError

    height, width = resolution
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is not a readable picture ({error})") from error
    scale = max(height / how.crop_pct / image.height, width / how.crop_pct / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(size, Image.Resampling[how.interpolation.upper()])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    image = image.crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    mean, std = torch.tensor(how.mean).view(3, 1, 1), torch.tensor(how.std).view(3, 1, 1)
    return (pixels - mean) / std


def photographs(folder: Path, resolution: Resolution, batch: int, how: Preprocessing) -> Tensor:
    """[batch, 3, height, width] fp32 from a folder's pictures, repeated when there are fewer than `batch`.

    Raises: InputError as `image_files` and `load_image`.
    """
    files = image_files(folder)[:batch]
    images = torch.stack([load_image(path, resolution, how) for path in files])
    return images.repeat(-(-batch // len(files)), 1, 1, 1)[:batch]
