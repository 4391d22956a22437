"""What the seeds are run on: photos of one size and their proposals, by selective search where OpenCV is there."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regionrt.runtime.errors import BackendError
from regionrt.runtime.selective_search import SelectiveSearch

from .photo_files import photos_of_size

_SIDES = (0.05, 0.8)
"""Least and largest side of a made-up proposal, as a part of the photo's."""


@dataclass(frozen=True)
class SeedInputs:
    """photos: RGB uint8 [H, W, 3], all of one size. proposals: float32 [P, 4] each, xyxy in their pixels.

    search_s: how long selective search took for each photo; none where it is not there. made: how many of the
    proposals of all photos are made up, because there was no search, or it found fewer.
    """

    photos: list[np.ndarray]
    proposals: list[np.ndarray]
    search_s: list[float]
    made: int
    told: str

    def save(self, path: Path) -> None:
        np.savez(path, photos=np.stack(self.photos), proposals=np.stack(self.proposals))


def load_inputs(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Photos and proposals as `SeedInputs.save` wrote them."""
    with np.load(path, allow_pickle=False) as stored:
        return list(stored["photos"]), list(stored["proposals"])


def seed_inputs(files: Sequence[Path], size: tuple[int, int], count: int, proposals: int, seed: int) -> SeedInputs:
    """`count` photos resized to `size` (height, width), of `files` or made, with `proposals` boxes each.

    The first of what selective search finds; what is missing to `proposals` is made up (`made_boxes`).
    """
    images, told = photos_of_size(files, size, count)
    rng = np.random.default_rng(seed)
    boxes, spent, made = [], [], 0
    search = SelectiveSearch()
    try:
        search(np.zeros((32, 32, 3), np.uint8))  # loads OpenCV, which is no part of a photo's time
        there = True
    except BackendError:  # all are made up, and the report says so
        there = False
    for image in images:
        started = time.perf_counter()
        found = search(image) if there else np.zeros((0, 4), np.float32)
        if there:
            spent.append(time.perf_counter() - started)
        found = found[:proposals]
        missing = proposals - len(found)
        made += missing
        boxes.append(np.concatenate([found, _made_boxes(rng, missing, size)]))
    return SeedInputs(images, boxes, spent, made, told)


def _made_boxes(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """Of all sizes and places inside the photo, [count, 4]."""
    room = np.array(size[::-1], np.float64)  # width, height
    sides = np.exp(rng.uniform(math.log(_SIDES[0]), math.log(_SIDES[1]), (count, 2))) * room
    low = rng.uniform(0, 1, (count, 2)) * (room - sides)
    return np.concatenate([low, low + sides], 1).astype(np.float32)
