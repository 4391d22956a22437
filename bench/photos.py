"""The photos that are timed and drawn: decoded beforehand, spread over the data, the same for every candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regionrt.runtime.image import Canvas, read_image
from regionrt.train.data import DetectionData, open_data


@dataclass(frozen=True)
class Photos:
    """RGB uint8 [H, W, 3] each, their names, and in words what they are."""

    images: list[np.ndarray]
    names: list[str]
    what: str


def photos_of_data(data: DetectionData, count: int) -> Photos:
    """At most `count` images, evenly spread over the split."""
    return _spread(data, count, f"images of the {data.split} split")


def photos_of_files(files: Sequence[str | Path], count: int) -> Photos:
    """The first `count` files. ImageError for one that cannot be decoded."""
    chosen = [Path(file) for file in files[:count]]
    return Photos([read_image(file) for file in chosen], [file.name for file in chosen], f"{len(chosen)} photos given")


def made_photos(canvas: Canvas, count: int, seed: int = 0) -> Photos:
    """Shapes over photos, of the canvas's size (64 to 2048 px), for who gives neither data nor photos."""
    height, width = (min(max(side, 64), 2048) for side in (canvas.height, canvas.width))
    data = open_data(f"shapes:test={count},size={height}x{width},seed={seed}", "test")
    return _spread(data, count, "pictures of shapes made on the fly, because no data was given")


def _spread(data: DetectionData, count: int, what: str) -> Photos:
    places = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int))
    samples = [data[int(place)] for place in places]
    return Photos([s.image() for s in samples], [s.name for s in samples], f"{len(samples)} {what}")
