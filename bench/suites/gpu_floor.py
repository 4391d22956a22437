"""The fewest bytes an op must move through a GPU's memory: every input that is needed read once, every output written
once. Over the bandwidth of a copy that is the time below which no kernel comes, unless its inputs are in a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regionrt.plugins.pyramid_pool import reference as pyramid_pool
from regionrt.plugins.roi_align.reference import level_thresholds
from regionrt.plugins.roi_pool import reference as roi_pool
from regionrt.plugins.warp import reference as warp


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


def roi_pool_bytes(
    rois: np.ndarray, side: tuple[int, int], scale: float, bins: int, channels: int, bytes_of_value: int
) -> int:
    """Of one image: the cells of all RoIs' bins, the output, and the RoIs (float32 [P, 4], in canvas px)."""
    windows = [
        [
            (roi_pool.bin_of(low, high, 0, bins, cells)[0], roi_pool.bin_of(low, high, bins - 1, bins, cells)[1])
            for low, high, cells in (
                (*(roi_pool.cell_at(v, scale) for v in (roi[1], roi[3])), side[0]),
                (*(roi_pool.cell_at(v, scale) for v in (roi[0], roi[2])), side[1]),
            )
        ]
        for roi in rois
    ]
    return _window_bytes(windows, side, len(rois) * bins * bins, channels, bytes_of_value) + rois.nbytes


def pyramid_pool_bytes(
    rois: np.ndarray, side: tuple[int, int], scale: float, bins: Sequence[int], channels: int, bytes_of_value: int
) -> int:
    """Of one image, as `roi_pool_bytes`; a RoI's window is read once for all levels."""
    windows = [
        [
            pyramid_pool.window(roi[1], roi[3], scale, side[0]),
            pyramid_pool.window(roi[0], roi[2], scale, side[1]),
        ]
        for roi in rois
    ]
    return _window_bytes(windows, side, len(rois) * sum(b * b for b in bins), channels, bytes_of_value) + rois.nbytes


def warp_bytes(
    rois: np.ndarray, side: tuple[int, int], crop: int, context: int, channels: int, bytes_of_value: int
) -> int:
    """Of one image: the pixels that any sample lies between, the output, and the RoIs."""
    touched = np.zeros(side, bool)
    for left, top, right, bottom in rois.astype(np.float64):
        rows = _between(top, bottom, crop, context, side[0])
        columns = _between(left, right, crop, context, side[1])
        touched[np.ix_(rows, columns)] = True
    values = int(touched.sum()) + len(rois) * crop * crop
    return values * channels * bytes_of_value + rois.nbytes


def _between(low: float, high: float, crop: int, context: int, side: int) -> np.ndarray:
    """The pixels with weight, of all samples along one axis."""
    at = np.array([warp.position(low, high, index, crop, context) for index in range(crop)])
    at = np.clip(at[(at >= 0) & (at <= side)] - 0.5, 0, side - 1)
    first = at.astype(np.int64)
    return np.unique(np.concatenate([first, first + (at > first)]))


def _window_bytes(
    windows: Sequence[Sequence[tuple[int, int]]], side: tuple[int, int], outputs: int, channels: int, width: int
) -> int:
    touched = np.zeros(side, bool)
    for (top, bottom), (left, right) in windows:
        touched[top:bottom, left:right] = True
    return (int(touched.sum()) + outputs) * channels * width
