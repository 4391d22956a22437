"""Box arithmetic of the NumPy fallbacks: float32, step by step as in plugins/boxes.h, so that the bits are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_MAX_LOG_RATIO = np.float32(math.log(1000.0 / 16))
_HALF = np.float32(0.5)


def exp(values: np.ndarray) -> np.ndarray:
    """exp in float64 of float32 values; rounded to float32 it is the same on every machine."""
    with np.errstate(over="ignore"):  # inf is what is meant
        return np.exp(values.astype(np.float64))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float32 [R, K] of each row of logits; a row with a NaN or an inf has none."""
    with np.errstate(invalid="ignore"):
        exponents = exp(logits - logits.max(1, keepdims=True))
        # np.add.accumulate: one after the other, as in C++; np.sum would add pairwise
        return (exponents / np.add.accumulate(exponents, axis=1)[:, -1:]).astype(np.float32)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float32 of float32."""
    return (1 / (1 + exp(-logits))).astype(np.float32)


def decode(deltas: np.ndarray, boxes: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """`boxes` [Q, 4] moved by `deltas` [Q, 4], which are divided by `weights` first."""
    x, y, w, h = (deltas[:, i] / np.float32(weight) for i, weight in enumerate(weights))
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    center_x = x * width + (boxes[:, 0] + _HALF * width)
    center_y = y * height + (boxes[:, 1] + _HALF * height)
    half_width = _HALF * (exp(np.minimum(w, _MAX_LOG_RATIO)).astype(np.float32) * width)
    half_height = _HALF * (exp(np.minimum(h, _MAX_LOG_RATIO)).astype(np.float32) * height)
    corners = (center_x - half_width, center_y - half_height, center_x + half_width, center_y + half_height)
    return np.stack(corners, axis=1)


def clip(boxes: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Boxes [Q, 4] clipped to an image of (height, width)."""
    height, width = (np.float32(side) for side in size)
    return np.clip(boxes, np.float32(0), np.array([width, height, width, height], np.float32))


def large_enough(boxes: np.ndarray, min_size: float) -> np.ndarray:
    """bool [Q]: both sides are at least `min_size` px."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= np.float32(min_size)).all(1)


def greedy(boxes: np.ndarray, classes: np.ndarray, iou_threshold: float, most: int) -> np.ndarray:
    """Indices of the first `most` boxes that greedy NMS per class keeps, of `boxes` [Q, 4], best first; all valid."""
    corners = np.ascontiguousarray(boxes.T)
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    alive = np.ones(len(boxes), bool)
    kept: list[int] = []
    threshold = np.float32(iou_threshold)
    for i in range(len(boxes)):
        if len(kept) == most:
            break
        if not alive[i]:
            continue
        kept.append(i)
        later = slice(i + 1, None)
        with np.errstate(invalid="ignore", over="ignore"):  # boxes of inf or NaN overlap nothing
            low = np.maximum(corners[:2, i, None], corners[:2, later])
            high = np.minimum(corners[2:, i, None], corners[2:, later])
            sides = np.maximum(high - low, np.float32(0))
            shared = sides[0] * sides[1]
            joined = areas[i] + areas[later] - shared
            overlap = np.divide(shared, joined, out=np.zeros_like(shared), where=joined > 0)
        alive[later] &= ~((overlap > threshold) & (classes[later] == classes[i]))
    return np.array(kept, np.int64)


def fraction(name: str, value: float) -> float:
    """A threshold in 0…1. ValueError outside."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected 0 to 1, got {value!r}")
    return float(value)


def four(name: str, values: Sequence[float]) -> tuple[float, float, float, float]:
    """The four weights of a box coder. ValueError for another number of them, or a zero."""
    if len(values) != 4 or not all(math.isfinite(value) and value != 0 for value in values):
        raise ValueError(f"{name}: expected four numbers other than 0, got {list(values)}")
    return tuple(float(value) for value in values)  # type: ignore[return-value]


def whole(name: str, value: int, least: int) -> int:
    """A whole number ≥ `least`. ValueError else."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value < 2**31:
        raise ValueError(f"{name}: expected a whole number ≥ {least}, got {value!r}")
    return int(value)


def scale_of(value: float) -> float:
    """Map cells per pixel: a number > 0. ValueError else."""
    if not (0 < value < math.inf):
        raise ValueError(f"spatial_scale: expected a number > 0, got {value!r}")
    return float(value)
