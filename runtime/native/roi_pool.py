"""RoI max pooling, channels last (RegionRoiPool: plugins/roi_pool)."""

from __future__ import annotations

import numpy as np

from . import arrays, library
from .boxes import scale_of, whole
from .calls import run

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
    feature_type = arrays.kind_of("feature", feature)
    feature = arrays.checked("feature", feature, None, (None, None, None, None))
    images, height, width, channels = feature.shape
    if max(height, width) > MOST_CELLS:
        raise ValueError(f"feature: expected at most {MOST_CELLS} cells a side, got {height} × {width}")
    rois = arrays.checked("rois", rois, np.float32, (images, None, 4))
    rows = rois.shape[1]
    counts = arrays.counts_in_range(counts, images, rows)
    size = tuple(whole("output_size", side, 1) for side in output_size)
    scale = scale_of(spatial_scale)
    shape = (images, rows, *size, channels) if channels_last else (images, rows, channels, *size)
    out = arrays.output("out", out, feature.dtype if dtype is None else np.dtype(dtype), shape)
    out_type = arrays.kind_of("dtype", out)
    threads = arrays.thread_count(threads)
    native = library.handle()
    if native is None:
        _in_numpy(feature, rois, counts, np.float32(scale), size, channels_last, out)
        return out
    run(
        native,
        "roi_pool",
        feature=feature.ctypes.data,
        rois=rois.ctypes.data,
        counts=counts.ctypes.data,
        out=out.ctypes.data,
        spatial_scale=scale,
        images=images,
        rows=rows,
        channels=channels,
        height=height,
        width=width,
        out_height=size[0],
        out_width=size[1],
        out_channels_last=channels_last,
        feature_type=feature_type,
        out_type=out_type,
        threads=threads,
    )
    return out


def _in_numpy(
    feature: np.ndarray,
    rois: np.ndarray,
    counts: np.ndarray,
    scale: np.float32,
    size: tuple[int, ...],
    channels_last: bool,
    out: np.ndarray,
) -> None:
    wide = arrays.widened(feature)
    out[:] = np.zeros((), out.dtype)
    for image, count in enumerate(counts):
        for row in range(count):
            if np.isnan(rois[image, row]).any():
                continue
            with np.errstate(over="ignore"):
                corners = np.clip(rois[image, row] * scale, -MOST_CELLS, MOST_CELLS)
            cells = np.trunc(corners + np.copysign(0.5, corners.astype(np.float64))).astype(np.int64)
            down = _bins(cells[1], cells[3], size[0], feature.shape[1])
            across = _bins(cells[0], cells[2], size[1], feature.shape[2])
            pooled = largest_cells(wide[image], down, across)
            out[image, row] = arrays.narrowed(pooled if channels_last else pooled.transpose(2, 0, 1), out.dtype)


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
