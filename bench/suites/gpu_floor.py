"""The fewest bytes an op must move through a GPU's memory: every input that is needed read once, every output written
once. Over the bandwidth of a copy that is the time below which no kernel comes, unless its inputs are in a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regionrt.plugins.roi_align.reference import level_thresholds


def floor_us(moved_bytes: float, bytes_per_second: float) -> float:
    return moved_bytes / bytes_per_second * 1e6


def roi_align_bytes(
    rois: np.ndarray, shapes: Sequence[tuple[int, int]], scales: Sequence[float], bins: int, ratio: int, channels: int,
    bytes_of_value: int,
) -> int:  # fmt: skip
    """Of one image: the cells that any sample touches, in all channels, the output, and the RoIs.

    rois float32 [P, 4] in canvas px; not aligned, as torchvision's detectors have it; `ratio` samples per bin and axis.
    """
    cells = touched_cells(rois, shapes, scales, bins, ratio)
    values = cells * channels + len(rois) * channels * bins * bins
    return values * bytes_of_value + rois.nbytes


def touched_cells(
    rois: np.ndarray, shapes: Sequence[tuple[int, int]], scales: Sequence[float], bins: int, ratio: int
) -> int:
    """How many different cells of all maps RoIAlign reads."""
    thresholds = np.array(level_thresholds(scales, 224.0, 4), np.float32)
    areas = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
    levels = (areas[:, None] >= thresholds[None]).sum(1)
    total = 0
    for level, ((height, width), scale) in enumerate(zip(shapes, scales, strict=True)):
        mine = rois[levels == level].astype(np.float64) * scale
        touched = np.zeros((height, width), bool)
        rows = _cells(mine[:, 1], mine[:, 3], height, bins, ratio)  # [P, samples, 2]
        columns = _cells(mine[:, 0], mine[:, 2], width, bins, ratio)
        for row, column in zip(rows, columns, strict=True):
            touched[np.ix_(row[row >= 0], column[column >= 0])] = True
        total += int(touched.sum())
    return total


def _cells(low: np.ndarray, high: np.ndarray, size: int, bins: int, ratio: int) -> np.ndarray:
    """The two cells behind each sample of each RoI along one axis, [P, 2 · bins · ratio]; −1 outside the map, and the
    first one twice where the second has no weight."""
    length = np.maximum(high - low, 1.0) / bins
    steps = (np.arange(bins * ratio) + 0.5) / ratio
    position = low[:, None] + steps[None] * length[:, None]
    outside = (position < -1) | (position > size)
    position = np.clip(position, 0, size - 1)
    lower = position.astype(np.int64)
    cells = np.stack([lower, lower + (position > lower)], -1)
    cells[outside] = -1
    return cells.reshape(len(low), 2 * bins * ratio)
