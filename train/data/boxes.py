"""Annotated boxes checked against their image: clipped, dropped, counted, and told once."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np

CLIP_TOLERANCE_PX = 1.0
"""A box may pass the border by this much without being counted as clipped: tools that count pixels from 0 where others
count from 1, and coordinates rounded to two decimals, do so everywhere."""


class DroppedBoxes(Counter[str]):
    """Counts by reason, with the image where each was met first."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}

    def count(self, reason: str, image: str) -> None:
        self[reason] += 1
        self.first.setdefault(reason, image)

    def warn(self, where: str) -> None:
        """One warning with all counts; silent where nothing was dropped or changed. Classes left out were asked for."""
        told = [reason for reason in self if reason != "class not chosen"]
        if told:
            parts = [f"{self[reason]} {_VERB[reason]} (first: {self.first[reason]})" for reason in told]
            warnings.warn(f"{where}: boxes " + ", ".join(parts), stacklevel=3)

    def __reduce__(self) -> tuple:  # Counter's own would lose `first` and call __init__ with an argument
        return _restore, (dict(self), self.first)


def _restore(counts: dict[str, int], first: dict[str, str]) -> DroppedBoxes:
    dropped = DroppedBoxes()
    dropped.update(counts)
    dropped.first = first
    return dropped


_VERB = {
    "zero area": "of zero area dropped",
    "outside the image": "outside the image dropped",
    "clipped": "partly outside the image clipped",
}


def fit_box(
    box: tuple[float, float, float, float], size: tuple[int, int], dropped: DroppedBoxes, image: str
) -> np.ndarray | None:
    """The box clipped to its image, float32 [4], or None: dropped, counted. box: xyxy px; size: height, width."""
    height, width = size
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        dropped.count("zero area", image)
        return None
    clipped = np.array([max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)], dtype=np.float32)
    if not (clipped[2] > clipped[0] and clipped[3] > clipped[1]):
        # A sliver whose edges are the same float32 number has no area either; it may well lie inside.
        inside = x1 < width and y1 < height and x2 > 0 and y2 > 0
        dropped.count("zero area" if inside else "outside the image", image)
        return None
    if max(-x1, -y1, x2 - width, y2 - height) > CLIP_TOLERANCE_PX:
        dropped.count("clipped", image)
    return clipped
