"""What RegionRoiPool computes, in plain loops (Girshick, Fast R-CNN, arXiv:1504.08083, section 2.1; rounding as in
torchvision.ops.roi_pool)."""

import math

import numpy as np

MOST_CELLS = 4096
"""A side of a map at most; a RoI's corners are limited to this many cells on either side of the map's origin."""


def roi_pool(
    feature: np.ndarray, rois: np.ndarray, counts: np.ndarray, *, spatial_scale: float, output_size: tuple[int, int]
) -> np.ndarray:
    """`feature` [N, C, H, W]; `rois` float32 [N, P, 4] (xyxy, canvas px); `counts` int32 [N].

    A RoI's corners are rounded to cells, both ends belong to it, and it has at least one row and one column. It is cut
    into h × w bins, from floor to ceil, so that neighbours may share cells; a bin is the maximum of its cells that are
    in the map, 0 where there is none. A RoI with NaN in it is all 0.

    Returns [N, P, C, h, w] in the feature's type; rows from counts[n] on are 0.
    """
    images, most = rois.shape[:2]
    side = feature.shape[2:]
    if max(side) > MOST_CELLS:
        raise ValueError(f"expected a map of at most {MOST_CELLS} cells a side, got {list(side)}")
    out = np.zeros((images, most, feature.shape[1], *output_size), feature.dtype)
    for n in range(images):
        for p in range(int(counts[n])):
            if np.isnan(rois[n, p]).any():
                continue
            left, top, right, bottom = (cell_at(value, spatial_scale) for value in rois[n, p])
            for i in range(output_size[0]):
                y0, y1 = bin_of(top, bottom, i, output_size[0], side[0])
                for j in range(output_size[1]):
                    x0, x1 = bin_of(left, right, j, output_size[1], side[1])
                    if y0 < y1 and x0 < x1:
                        out[n, p, :, i, j] = feature[n, :, y0:y1, x0:x1].max((1, 2))
    return out


def cell_at(position: float, spatial_scale: float) -> int:
    """The cell of a corner at `position` px: rounded in float32, halves away from zero."""
    with np.errstate(over="ignore"):
        exact = np.float32(position) * np.float32(spatial_scale)
    cells = float(np.clip(exact, -MOST_CELLS, MOST_CELLS))
    return int(math.copysign(math.floor(abs(cells) + 0.5), cells))  # exact: float64


def bin_of(first: int, last: int, index: int, bins: int, side: int) -> tuple[int, int]:
    """Cells [begin, end) of bin `index` of a RoI from cell `first` to `last`, along an axis of `side` cells.

    The edges are those of a division in float32, as torchvision and ONNX's MaxRoiPool make it: of 57 cells the last of
    7 bins ends with cell 58, since 7 · (57 / 7) is a little more than 57 then.
    """
    share = np.float32(max(last - first + 1, 1)) / np.float32(bins)
    begin, end = math.floor(np.float32(index) * share), math.ceil(np.float32(index + 1) * share)
    return min(max(first + begin, 0), side), min(max(first + end, 0), side)
