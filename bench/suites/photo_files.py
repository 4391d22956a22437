"""Photos that a suite times on: of a folder or made, all resized to one size beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regionrt.bench.errors import BenchError
from regionrt.bench.photos import made_photos, photos_of_files
from regionrt.runtime.image import Canvas
from regionrt.runtime.native.bilinear import resize_bilinear

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_MULTIPLE = 32


def photo_files(folder: Path | None) -> list[Path]:
    """The image files of a folder, by name; none for None. BenchError where it has none."""
    if folder is None:
        return []
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise BenchError(f"{folder}: expected a folder of photos, found none in it")
    return files


def photos_of_size(files: Sequence[Path], size: tuple[int, int], count: int) -> tuple[list[np.ndarray], str]:
    """`count` photos and what they are, all resized to `size` (height, width), so that no candidate has another resize
    than another; without files photos with shapes drawn on them."""
    height, width = size
    if not files:
        high, wide = (-(-side // _MULTIPLE) * _MULTIPLE for side in size)
        made = made_photos(Canvas(high, wide, min_size=min(high, wide), max_size=max(high, wide)), count)
        images, told = made.images, f"{len(made.images)} photos with shapes drawn on them"
    else:
        given = photos_of_files(files, count)
        images, told = given.images, f"{len(given.images)} photos given"
    return [resize_bilinear(image, height, width) for image in images], f"{told}, resized to each size beforehand"
