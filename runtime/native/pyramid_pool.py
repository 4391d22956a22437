"""Spatial pyramid pooling of regions, from channels-last maps (RegionPyramidPool: plugins/pyramid_pool)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import arrays
from .boxes import scale_of, whole
from .per_roi import checked_maps, per_roi
from .roi_pool import MOST_CELLS, largest_cells

MOST_LEVELS, MOST_BINS = 8, 64


def pyramid_pool(
    feature: np.ndarray,
    rois: np.ndarray,
    counts: np.ndarray,
    *,
    spatial_scale: float,
    bins: Sequence[int],
    channels_last: bool = False,
    dtype: np.dtype | type | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """Spatial pyramid pooling (He et al., arXiv:1406.4729, section 2.2 and appendix A), exactly.

    A RoI's window has the cells whose middles lie strictly inside it, or else the one under its own middle. Each level
    cuts it into b × b bins, from floor to ceil, and takes the maximum of each. Windows outside the map give 0.

    Args:
        feature: [N, H, W, C], float32 or bf16 (ml_dtypes' type, or the bits as uint16), H and W at most 4096.
        rois: float32 [N, P, 4], xyxy in pixels of the canvas; counts: int32 [N], how many of each image's are real.
        spatial_scale: map cells per pixel of the canvas.
        bins: b of each level, 1 to 64; 1 to 8 levels.
        channels_last: give [N, P, Σb², C] instead of [N, P, C · Σb²].
        dtype: of the result, float32 or bf16; None: the feature's own.
        out: an array of that shape and type to write to, whatever it holds.
        threads: for RoIs; None: one per usable core. The result does not depend on it.

    Returns:
        [N, P, C · Σb²], level by level in the order of `bins`, each [C, b, b]; or [N, P, Σb², C]. Rows from counts[n]
        on are 0.

    Raises:
        ValueError: another type or shape, or an option out of its range.
    """
    feature = checked_maps("feature", feature, MOST_CELLS)
    sides = np.array([whole("bins", b, 1) for b in bins], np.int32)
    if not 1 <= len(sides) <= MOST_LEVELS or sides.max() > MOST_BINS:
        raise ValueError(f"bins: expected 1 to {MOST_LEVELS} levels of 1 to {MOST_BINS}, got {list(bins)}")
    scale = scale_of(spatial_scale)
    channels, number = feature.shape[3], int((sides**2).sum())

    def in_numpy(cells: np.ndarray, roi: np.ndarray) -> np.ndarray:
        left, top, right, bottom = windows_of(roi, scale, cells.shape[:2]).tolist()
        down, across = (top, bottom), (left, right)
        levels = [largest_cells(cells, _bins(*down, b), _bins(*across, b)) for b in sides.tolist()]  # [b, b, C]
        if channels_last:
            return np.concatenate([level.reshape(-1, channels) for level in levels])
        return np.concatenate([level.transpose(2, 0, 1).ravel() for level in levels])

    return per_roi(
        "pyramid_pool",
        feature,
        rois,
        counts,
        (number, channels) if channels_last else (number * channels,),
        in_numpy,
        dtype=dtype,
        out=out,
        threads=threads,
        feature=feature.ctypes.data,
        feature_type=arrays.kind_of("feature", feature),
        bins=sides.ctypes.data,
        levels=len(sides),
        spatial_scale=scale,
        out_channels_last=channels_last,
    )


def windows_of(rois: np.ndarray, spatial_scale: float, side: Sequence[int]) -> np.ndarray:
    """int64 [..., 4]: the cells left, top (where a window begins), right, bottom (where it ends) of RoIs [..., 4]
    without NaN, on a map of `side` (height, width). Those with the same ones are pooled alike."""
    half, most = np.float32(0.5), np.array([side[1], side[0]])
    with np.errstate(over="ignore"):
        ends = np.clip(rois * np.float32(spatial_scale), -MOST_CELLS, MOST_CELLS)
    low, high = ends[..., :2], ends[..., 2:]
    begin, end = np.floor(low - half).astype(np.int64) + 1, np.ceil(high - half).astype(np.int64)
    middle = np.floor((low + high) * half).astype(np.int64)
    none = begin >= end
    begin, end = np.where(none, middle, begin), np.where(none, middle + 1, end)
    return np.concatenate([np.clip(begin, 0, most), np.clip(end, 0, most)], -1)


def _bins(begin: int, end: int, bins: int) -> np.ndarray:
    """int64 [bins, 2]: where each begins and ends."""
    length, index = max(end - begin, 0), np.arange(bins)
    return begin + np.stack([index * length // bins, -(-(index + 1) * length // bins)], 1)
