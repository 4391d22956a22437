"""RegionPyramidPool: the reference against torch's adaptive pooling of crops, the paper's windows, and the order of the
values; the rest is in test_region_pools.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from one_op import CPU, NATIVE, OPENVINO, PORTABLE, WAYS
from region_pools import PyramidPool
from torch.nn.functional import adaptive_max_pool2d

from regionrt.plugins.pyramid_pool.reference import exact_in_float32, pyramid_pool, window
from regionrt.runtime.native import windows_of


def cells_inside(low: float, high: float, stride: float, side: int) -> list[int]:
    """By trying every cell, in fractions: those whose middle lies strictly inside, or the one under the middle."""
    ends = [Fraction(float(low)) / Fraction(stride), Fraction(float(high)) / Fraction(stride)]
    everywhere = range(-200, 200)
    inside = [i for i in everywhere if ends[0] < i + Fraction(1, 2) < ends[1]]
    if not inside:
        inside = [i for i in everywhere if i <= sum(ends) / 2 < i + 1]
    return [i for i in inside if 0 <= i < side]


def test_the_windows_that_rows_are_shared_by_are_the_references():
    rng = np.random.default_rng(5)
    corners = rng.uniform(-40, 400, (400, 2, 2)).astype(np.float32)
    corners[:100] = np.round(corners[:100] / 8) * 8  # on edges and middles of cells
    rois = np.concatenate([corners.min(1), corners.max(1)], -1)
    for scale, (height, width) in ((1 / 16, (19, 25)), (1 / 13, (7, 11))):
        across = [window(left, right, scale, width) for left, _, right, _ in rois]
        down = [window(top, bottom, scale, height) for _, top, _, bottom in rois]
        expected = np.stack([across, down], -1).reshape(-1, 4)  # left, top, right, bottom
        np.testing.assert_array_equal(windows_of(rois, scale, (height, width)), expected)


@pytest.mark.parametrize("bins", [(6, 3, 2, 1), (4, 2, 1), (7, 5)])
def test_the_reference_is_torchs_adaptive_pooling_of_crops(bins):
    case = PyramidPool(bins=bins, rows=40, counts=(40,), size=(9, 12))
    feature, rois, counts = case.arrays()
    rois[0, ::5, 2:] = rois[0, ::5, :2] + 9  # smaller than a cell
    found = case.reference(feature, rois, counts)
    tried = 0
    for row, (left, top, right, bottom) in enumerate(rois[0]):
        down, across = cells_inside(top, bottom, 16, 9), cells_inside(left, right, 16, 12)
        if not (down and across):
            assert not found[0, row].any()
            continue
        crop = torch.from_numpy(feature[0][:, down][:, :, across])
        expected = torch.cat([adaptive_max_pool2d(crop, b).flatten() for b in bins])
        np.testing.assert_array_equal(found[0, row], expected.numpy())
        tried += 1
    assert tried > 20


def test_windows_of_the_paper():
    """Appendix A on a map of 16 px cells: strictly inside, so that a window that ends on a middle leaves it out."""
    feature = np.arange(8, dtype=np.float32)[None, None, None] + 1  # one row: the maximum is the last cell, from 1 on
    rois = np.array([[[0, 0, x2, 16] for x2 in (128, 120, 120.01, 24, 24.01, 8, 1, 0)]], np.float32)
    found = pyramid_pool(feature, rois, np.array([8], np.int32), spatial_scale=1 / 16, bins=[1])
    assert found[0, :, 0].tolist() == [8, 7, 8, 1, 2, 1, 1, 1]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_the_order_of_the_values(way):
    """Level by level, then channel by channel, then row by row."""
    feature = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    case = PyramidPool(size=(2, 2), stride=1, bins=(1, 2), counts=(1,), rows=1)
    found = case.run(way, feature, np.array([[[0, 0, 2, 2]]], np.float32), np.array([1], np.int32))
    assert found[0, 0].tolist() == [3, 7, 0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 7, 11, 14])
def test_no_edge_is_off_by_a_cell(bins):
    """Windows of each length, on a map that grows from left to right, so that a maximum says where its bin ends."""
    side = 130
    ramp = np.arange(side, dtype=np.float32)
    feature = np.stack([ramp, -ramp])[None, :, None]
    rois, counts = np.stack([0 * ramp, 0 * ramp, ramp + 1, 0 * ramp + 1], -1)[None], np.array([side], np.int32)
    case = PyramidPool(stride=1, size=(1, side), bins=(bins,), rows=side)
    expected = case.reference(feature, rois, counts)
    assert exact_in_float32(bins) == (bins in (1, 2, 3, 6))
    for way in (NATIVE, PORTABLE, OPENVINO, *CPU):
        np.testing.assert_array_equal(case.run(way, feature, rois, counts), expected)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_level_larger_than_the_window_has_bins_that_overlap(way):
    case = PyramidPool(bins=(6, 3), counts=(1,), rows=1, size=(5, 5))
    feature, _, counts = case.arrays()
    found = case.run(way, feature, np.array([[[34, 34, 62, 62]]], np.float32), counts)  # two by two cells
    np.testing.assert_array_equal(
        found[0, 0, :108].reshape(3, 6, 6)[:, ::3, ::3], feature[0, :, 2:4, 2:4]
    )  # the first and the fourth sixth
    assert (found != 0).all()
