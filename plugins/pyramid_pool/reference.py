"""What RegionPyramidPool computes, in plain loops (He et al., Spatial Pyramid Pooling in Deep Convolutional Networks,
arXiv:1406.4729, section 2.2 and appendix A)."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

MOST_CELLS = 4096
"""A side of a map at most; a RoI's corners are limited to this many cells on either side of the map's origin."""
MOST_LEVELS, MOST_BINS = 8, 64


def pyramid_pool(
    feature: np.ndarray, rois: np.ndarray, counts: np.ndarray, *, spatial_scale: float, bins: Sequence[int]
) -> np.ndarray:
    """`feature` [N, C, H, W]; `rois` float32 [N, P, 4] (xyxy, canvas px); `counts` int32 [N].

    Each level of the pyramid cuts a RoI's window on the map into b × b bins, from floor to ceil, and takes the maximum
    of each. Bins overlap where a window has fewer cells than bins; none is empty. A window outside the map, or with NaN
    in it, gives 0.

    Returns [N, P, C · Σb²] in the feature's type, level by level in the order of `bins`, each [C, b, b]; rows from
    counts[n] on are 0.
    """
    side = feature.shape[2:]
    check(side, bins)
    images, most = rois.shape[:2]
    out = np.zeros((images, most, feature.shape[1] * sum(b * b for b in bins)), feature.dtype)
    for n in range(images):
        for p in range(int(counts[n])):
            if np.isnan(rois[n, p]).any():
                continue
            left, top, right, bottom = rois[n, p]
            down, across = window(top, bottom, spatial_scale, side[0]), window(left, right, spatial_scale, side[1])
            if down[0] >= down[1] or across[0] >= across[1]:
                continue
            levels = []
            for b in bins:
                rows, columns = ([bin_of(axis, i, b) for i in range(b)] for axis in (down, across))
                levels += [
                    feature[n, c, y0:y1, x0:x1].max()
                    for c in range(feature.shape[1]) for y0, y1 in rows for x0, x1 in columns
                ]  # fmt: skip
            out[n, p] = levels
    return out


def check(sides: Sequence[int | None], bins: Sequence[int]) -> None:
    """ValueError for a map that is too large (None: a side is not known), or levels that are none."""
    if any(side is not None and side > MOST_CELLS for side in sides):
        raise ValueError(
            f"RegionPyramidPool: expected a map of at most {MOST_CELLS} cells a side, got {list(sides)}: "
            "pool from a coarser one"
        )
    if not (1 <= len(bins) <= MOST_LEVELS and all(1 <= b <= MOST_BINS for b in bins)):
        raise ValueError(
            f"RegionPyramidPool: expected 1 to {MOST_LEVELS} levels of 1 to {MOST_BINS} bins, got {list(bins)}"
        )


def window(low: float, high: float, spatial_scale: float, side: int) -> tuple[int, int]:
    """Cells [begin, end) of the window from `low` to `high` px along an axis of `side` cells; begin ≥ end: none.

    A cell stands for the pixels that it was computed from and lies in their middle: cell i, counted from 0, at
    (i + ½) / spatial_scale px. A window has the cells that lie strictly between its ends, as in appendix A:
    ⌊x/S⌋ + 1 to ⌈x/S⌉ − 1, x being measured from the middle of cell 0. If there is none, it has the cell under its
    own middle: a region that is smaller than a cell still sees one.
    """
    with np.errstate(over="ignore"):
        ends = np.array([low, high], np.float32) * np.float32(spatial_scale)
    first_end, last_end = np.clip(ends, -MOST_CELLS, MOST_CELLS)
    begin = math.floor(first_end - np.float32(0.5)) + 1
    end = math.ceil(last_end - np.float32(0.5))
    if begin >= end:
        begin = math.floor((first_end + last_end) * np.float32(0.5))
        end = begin + 1
    return min(max(begin, 0), side), min(max(end, 0), side)


def bin_of(cells: tuple[int, int], index: int, bins: int) -> tuple[int, int]:
    """Cells [begin, end) of bin `index` of a window: from ⌊i·n/b⌋ to ⌈(i + 1)·n/b⌉ of its n cells, exactly."""
    begin, length = cells[0], cells[1] - cells[0]
    return begin + index * length // bins, begin - (-(index + 1) * length // bins)


@cache
def exact_in_float32(bins: int) -> bool:
    """Whether floor and ceil of float32 products are those of the fractions, for windows of any length."""
    length = np.arange(1, MOST_CELLS + 1)[:, None]
    index = np.arange(bins)
    share = length.astype(np.float32) / np.float32(bins)
    low, high = np.floor(index.astype(np.float32) * share), np.ceil((index + 1).astype(np.float32) * share)
    return bool((low == index * length // bins).all() and (high == -(-(index + 1) * length // bins)).all())
