"""RegionRoiPool: the reference against torchvision, and where bins begin and end; the rest is in test_region_pools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from one_op import CPU, NATIVE, OPENVINO, PORTABLE, WAYS
from region_pools import RoiPool
from test_region_pools import CASES
from torchvision.ops import roi_pool as torchvision_roi_pool

from regionrt.plugins.roi_pool.reference import cell_at
from regionrt.runtime.native import cells_of

OF_ROIS = {name: case for name, case in CASES.items() if isinstance(case, RoiPool)}


@pytest.mark.parametrize("case", OF_ROIS.values(), ids=OF_ROIS.keys())
def test_the_reference_is_torchvisions_roi_pool(case):
    for seed in range(3):
        feature, rois, counts = case.arrays(seed=seed)
        found = case.reference(feature, rois, counts)
        for image, count in enumerate(counts):
            boxes = [torch.from_numpy(rois[image, :count])]
            one = torch.from_numpy(feature[image : image + 1])
            expected = torchvision_roi_pool(one, boxes, case.out, 1 / case.stride)
            np.testing.assert_array_equal(found[image, :count], expected.numpy())


@pytest.mark.parametrize("case", OF_ROIS.values(), ids=OF_ROIS.keys())
def test_the_cells_that_rows_are_shared_by_are_the_references(case):
    _, rois, counts = case.arrays()
    real = np.concatenate([boxes[:count] for boxes, count in zip(rois, counts, strict=True)])
    real = real[~np.isnan(real).any(1)]
    halves = (np.arange(-9, 9, dtype=np.float32)[:, None] + np.float32(0.5)) * case.stride  # rounded away from zero
    real = np.concatenate([real, np.repeat(halves, 4, 1)])
    expected = [[cell_at(value, 1 / case.stride) for value in box] for box in real]
    np.testing.assert_array_equal(cells_of(real, 1 / case.stride), expected)


def every_length(most: int) -> np.ndarray:
    """RoIs [1, most, 4] of 1 to `most` cells from the map's origin on, at scale 1."""
    last = np.arange(most, dtype=np.float32)
    return np.stack([np.zeros_like(last), np.zeros_like(last), last, last], -1)[None]


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 7, 11, 13, 14, 22, 28])
def test_no_edge_is_off_by_a_cell(bins):
    """Each length on a map that grows from left to right, so that a maximum says where its bin ends; and falls."""
    side = 300
    ramp = np.arange(side, dtype=np.float32)
    feature = np.stack([ramp, -ramp])[None, :, None]  # [1, 2, 1, side]
    rois, counts = every_length(side), np.array([side], np.int32)
    case = RoiPool(stride=1, size=(1, side), out=(1, bins), rows=side)
    expected = case.reference(feature, rois, counts)
    boxes = [torch.from_numpy(rois[0])]
    np.testing.assert_array_equal(
        expected[0], torchvision_roi_pool(torch.from_numpy(feature), boxes, case.out, 1.0).numpy()
    )
    for way in (NATIVE, PORTABLE, OPENVINO, *CPU):
        np.testing.assert_array_equal(case.run(way, feature, rois, counts), expected)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_corners_at_halves_are_rounded_away_from_zero(way):
    case = RoiPool(stride=16, size=(6, 6), out=(1, 1), rows=7, counts=(7,))
    starts = np.array([-40, -24, -8, 8, 24, 40, 56], np.float32)  # −2.5 … 3.5 cells
    rois = np.stack([starts, starts, starts, starts], -1)[None]
    feature = np.arange(1, 37, dtype=np.float32).reshape(1, 1, 6, 6)
    found = case.run(way, feature, rois, np.array([7], np.int32))
    # cells −3, −2, −1, 1, 2, 3, 4 of the diagonal
    assert found[0, :, 0, 0, 0].tolist() == [0, 0, 0, 8, 15, 22, 29]
