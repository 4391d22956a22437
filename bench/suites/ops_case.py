"""What is compared in the suite of single ops: an op on one set of inputs, of the size of a Faster R-CNN R50-FPN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

HEIGHT, WIDTH = 800, 1088
STRIDES = (4, 8, 16, 32)
CHANNELS, ROIS, CLASSES = 256, 1000, 90


@dataclass(frozen=True)
class Case:
    """One op on one set of inputs: what each library calls, ours first, and how far ours is from the first peer."""

    name: str
    ours: str
    calls: Mapping[str, Callable[[], Any]]
    agreement: Callable[[], str]


def boxes_on_canvas(rng: np.random.Generator, count: int, least: float = 16, most: float = 500) -> np.ndarray:
    """Of all sizes and places on the canvas, inside it."""
    center = rng.uniform(0, 1, (count, 2)) * (WIDTH, HEIGHT)
    side = np.exp(rng.uniform(np.log(least), np.log(most), (count, 2)))
    boxes = np.concatenate([center - side / 2, center + side / 2], 1).astype(np.float32)
    return np.clip(boxes, 0, np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32))


def error_of(found: np.ndarray, expected: np.ndarray) -> str:
    return f"{np.abs(found - expected).max() / np.abs(expected).max():.0e} of the maximum"
