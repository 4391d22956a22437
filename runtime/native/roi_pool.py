"""RoI max pooling, channels last (RegionRoiPool: plugins/roi_pool)."""

from __future__ import annotations

import numpy as np

from . import arrays
from .boxes import scale_of, whole
from .per_roi import checked_maps, per_roi

MOST_CELLS = 4096


def roi_pool(
    feature: np.ndarray,
    rois: np.ndarray,
    counts: np.ndarray,
    *,
    spatial_scale: float,
    output_size: tuple[int, int],
    channels_last: bool = False,
    dtype: np.dtype | type | None = None,
    out: np.ndarray | None = None,
    threads: int | None = None,
) -> np.ndarray:
    """RoI pooling (Girshick, Fast R-CNN, arXiv:1504.08083, section 2.1), with torchvision's rounding, exactly.

    A RoI's corners are rounded to cells, both ends belong to it; it is cut into h × w bins from floor to ceil. A bin is
    the maximum of its cells that are in the map, 0 where there is none. RoIs with NaN in them are 0.

    Args:
        feature: [N, H, W, C], float32 or bf16 (ml_dtypes' type, or the bits as uint16), H and W at most 4096.
        rois: float32 [N, P, 4], xyxy in pixels of the canvas; counts: int32 [N], how many of each image's are real.
        spatial_scale: map cells per pixel of the canvas.
        output_size: (h, w).
        channels_last: give [N, P, h, w, C] instead of [N, P, C, h, w].
        dtype: of the result, float32 or bf16; None: the feature's own.
        out: an array of that shape and type to write to, whatever it holds.
        threads: for RoIs; None: one per usable core. The result does not depend on it.

    Returns:
        [N, P, C, h, w] or [N, P, h, w, C]; rows from counts[n] on are 0.

    Raises:
        ValueError: another type or shape, or an option out of its range.
    """
    feature = checked_maps("feature", feature, MOST_CELLS)
    size = tuple(whole("output_size", side, 1) for side in output_size)
    scale = scale_of(spatial_scale)
    channels = feature.shape[3]

    def in_numpy(cells: np.ndarray, roi: np.ndarray) -> np.ndarray:
        pooled = largest_cells(cells, *_windows(roi, np.float32(scale), size, cells.shape))
        return pooled if channels_last else pooled.transpose(2, 0, 1)

    return per_roi(
        "roi_pool",
        feature,
        rois,
        counts,
        (*size, channels) if channels_last else (channels, *size),
        in_numpy,
        dtype=dtype,
        out=out,
        threads=threads,
        feature=feature.ctypes.data,
        feature_type=arrays.kind_of("feature", feature),
        spatial_scale=scale,
        out_height=size[0],
        out_width=size[1],
        out_channels_last=channels_last,
    )


def cells_of(rois: np.ndarray, spatial_scale: float | np.float32) -> np.ndarray:
    """int64 [..., 4]: the cells of the corners of RoIs [..., 4] without NaN. The same ones: pooled alike."""
    with np.errstate(over="ignore"):
        corners = np.clip(rois * np.float32(spatial_scale), -MOST_CELLS, MOST_CELLS)
    return np.trunc(corners + np.copysign(0.5, corners.astype(np.float64))).astype(np.int64)


def _windows(
    roi: np.ndarray, scale: np.float32, size: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Of the bins of one RoI: rows and columns of the map, int64 [h, 2] and [w, 2], begin and end."""
    cells = cells_of(roi, scale)
    return _bins(cells[1], cells[3], size[0], shape[0]), _bins(cells[0], cells[2], size[1], shape[1])


def _bins(first: int, last: int, bins: int, side: int) -> np.ndarray:
    """int64 [bins, 2]: where each begins and ends among `side` cells; divided in float32, as the definition does."""
    share = np.float32(max(last - first + 1, 1)) / np.float32(bins)
    index = np.arange(bins, dtype=np.float32)
    edges = np.stack([np.floor(index * share), np.ceil((index + 1) * share)], 1).astype(np.int64)
    return np.clip(edges + first, 0, side)


def largest_cells(feature: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """[h, w, C] of a map [H, W, C]: the maximum of rows down[i] × columns across[j] (begin, end); 0 where none."""
    pooled = np.zeros((len(down), len(across), feature.shape[2]), np.float32)
    for i, (top, bottom) in enumerate(down):
        for j, (left, right) in enumerate(across):
            if top < bottom and left < right:
                pooled[i, j] = feature[top:bottom, left:right].max((0, 1))
    return pooled
