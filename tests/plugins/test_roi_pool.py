"""RegionRoiPool: the reference against torchvision, every form against the reference; exact, never nearly right."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, OPENVINO, PORTABLE, WAYS, run
from torchvision.ops import roi_pool as torchvision_roi_pool

from regionrt.export.errors import ExportError
from regionrt.plugins.roi_pool.reference import roi_pool
from regionrt.plugins.roi_pool.torch_op import roi_pool as torch_op


@dataclass(frozen=True)
class Case:
    """A map of `size` cells, of so many pixels each, and what is asked of it."""

    size: tuple[int, int] = (13, 17)
    stride: float = 16
    out: tuple[int, int] = (3, 2)
    counts: tuple[int, ...] = (6, 0, 3)  # full, none, some
    rows: int = 6

    def attributes(self) -> dict:
        return {"spatial_scale": 1 / self.stride, "output_height": self.out[0], "output_width": self.out[1]}

    def arrays(self, dtype=np.float32, seed: int = 0):
        rng = np.random.default_rng(seed)
        feature = rng.normal(size=(len(self.counts), 3, *self.size)).astype(dtype)
        extent = np.array([self.size[1], self.size[0]]) * self.stride
        corners = rng.uniform(-0.4, 1.4, (len(self.counts), self.rows, 2, 2)) * extent
        rois = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
        return feature, rois, np.array(self.counts, np.int32)

    def reference(self, feature, rois, counts):
        return roi_pool(feature, rois, counts, spatial_scale=1 / self.stride, output_size=self.out)

    def run(self, way, feature, rois, counts, shapes=None):
        inputs = {"feature": feature, "rois": rois, "counts": counts}
        return run("RegionRoiPool", way, inputs, self.attributes(), shapes)[0]


DYNAMIC = {"feature": ("N", 3, "h", "w"), "rois": ("N", 6, 4), "counts": ("N",)}
CASES = {
    "a few bins": Case(),
    "a map of one cell": Case(size=(1, 1)),
    "a map of one row": Case(size=(1, 23), out=(2, 5)),
    "more bins than cells": Case(size=(4, 3), out=(7, 7)),
    "one bin": Case(out=(1, 1), size=(33, 18)),
    "a scale that is no power of two": Case(stride=11.7, size=(40, 31)),
    "bins that a division in float32 makes longer": Case(stride=1, size=(60, 64), out=(7, 13)),
    "one image": Case(counts=(4,)),
    "nothing in any image": Case(counts=(0, 0)),
}


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_form_computes_what_the_reference_does(case, way):
    feature, rois, counts = case.arrays()
    np.testing.assert_array_equal(case.run(way, feature, rois, counts), case.reference(feature, rois, counts))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_reference_is_torchvisions_roi_pool(case):
    for seed in range(3):
        feature, rois, counts = case.arrays(seed=seed)
        found = case.reference(feature, rois, counts)
        for image, count in enumerate(counts):
            boxes = [torch.from_numpy(rois[image, :count])]
            one = torch.from_numpy(feature[image : image + 1])
            expected = torchvision_roi_pool(one, boxes, case.out, 1 / case.stride)
            np.testing.assert_array_equal(found[image, :count], expected.numpy())


@pytest.mark.parametrize("way", CPU, ids="-".join)
@pytest.mark.parametrize("case", [Case(counts=(0, 0), rows=0), Case(counts=())], ids=["no rows", "no images"])
def test_nothing_to_do(case, way):
    assert case.run(way, *case.arrays()).shape == (len(case.counts), case.rows, 3, 3, 2)


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
    case = Case(stride=1, size=(1, side), out=(1, bins), rows=side)
    expected = case.reference(feature, rois, counts)
    boxes = [torch.from_numpy(rois[0])]
    np.testing.assert_array_equal(
        expected[0], torchvision_roi_pool(torch.from_numpy(feature), boxes, case.out, 1.0).numpy()
    )
    for way in (NATIVE, PORTABLE, OPENVINO, *CPU):
        np.testing.assert_array_equal(case.run(way, feature, rois, counts), expected)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_corners_at_halves_are_rounded_away_from_zero(way):
    case = Case(stride=16, size=(6, 6), out=(1, 1), rows=7, counts=(7,))
    starts = np.array([-40, -24, -8, 8, 24, 40, 56], np.float32)  # −2.5 … 3.5 cells
    rois = np.stack([starts, starts, starts, starts], -1)[None]
    feature = np.arange(1, 37, dtype=np.float32).reshape(1, 1, 6, 6)
    found = case.run(way, feature, rois, np.array([7], np.int32))
    # cells −3, −2, −1, 1, 2, 3, 4 of the diagonal
    assert found[0, :, 0, 0, 0].tolist() == [0, 0, 0, 8, 15, 22, 29]


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_boxes_that_are_reversed_or_points_or_far_outside(way):
    case = Case(rows=8, counts=(8,))
    feature, rois, counts = case.arrays()
    rois[0] = [
        [20, 20, 20, 20], [0, 0, 0, 0], [100, 90, 20, 10], [1e9, 1e9, 2e9, 2e9], [-1e30, -1e30, 1e30, 1e30],
        [-np.inf, 0, np.inf, 50], [np.nan, 0, 50, 50], [0, 0, 50, np.nan],
    ]  # fmt: skip
    found = case.run(way, feature, rois, counts)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))
    assert not found[0, [3, 6, 7]].any()
    assert (found[0, :3] != 0).any((1, 2, 3)).all()


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_rows_beyond_the_count_are_zero(garbage, way):
    case = Case()
    feature, rois, counts = case.arrays()
    expected = case.reference(feature, rois, counts)
    for image, count in enumerate(counts):
        rois[image, count:] = garbage
    np.testing.assert_array_equal(case.run(way, feature, rois, counts), expected)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_broken_image_does_not_reach_its_neighbours(way):
    case = Case()
    feature, rois, counts = case.arrays()
    whole = case.run(way, feature, rois, counts)
    feature[0] = np.nan
    np.testing.assert_array_equal(case.run(way, feature, rois, counts)[1:], whole[1:])


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_negative_features_and_ties(way):
    """The maximum of negative cells is negative, and zero only where a bin is empty."""
    case = Case()
    feature, rois, counts = case.arrays()
    feature = -np.round(np.abs(feature)) - 1
    found = case.run(way, feature, rois, counts)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))
    assert found.min() < 0


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("size", [(13, 17), (40, 9), (70, 35)])
def test_maps_of_any_size_in_one_model(size, way):
    """With a dynamic canvas the graph does not know the map's size; bins of many cells are gone through in steps."""
    case = Case(size=size, out=(2, 2))
    feature, rois, counts = case.arrays()
    rois[0, 0] = [-9, -9, 3000, 3000]
    found = case.run(way, feature, rois, counts, DYNAMIC)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))


@pytest.mark.parametrize(
    ("dtype", "way"),
    [(np.float16, way) for way in WAYS if way not in CPU] + [(ml_dtypes.bfloat16, way) for way in WAYS],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value.__name__,
)
def test_features_of_16_bits_keep_boxes_in_32(dtype, way):
    """A maximum is one of the cells, whatever their type; a box of 8 bits would lie pixels away."""
    case = Case(size=(21, 63), out=(5, 4))
    feature, rois, counts = case.arrays(dtype)
    found = case.run(way, feature, rois, counts).astype(np.float32)
    np.testing.assert_array_equal(found, case.reference(feature.astype(np.float32), rois, counts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_torch_op_computes_what_the_reference_does(dtype):
    case = Case(size=(21, 63), out=(7, 7))
    feature, rois, counts = case.arrays()
    rois[0, :3] = [[np.nan, 0, 9, 9], [-1e30, 0, 1e30, 90], [300, 200, 10, 10]]
    tensor = torch.from_numpy(feature).to(dtype)
    found = torch_op(tensor, torch.from_numpy(rois), torch.from_numpy(counts), *case.attributes().values())
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.float().numpy(), case.reference(tensor.float().numpy(), rois, counts))


def test_a_map_that_is_too_large_is_refused():
    case = Case(size=(1, 4097), counts=(1,), rows=1)
    feature, rois, counts = case.arrays()
    for form in (NATIVE, PORTABLE):
        with pytest.raises(ExportError, match="at most 4096 cells a side"):
            case.run(form, feature, rois, counts)
    for call in (
        lambda: case.run(CPU[-1], feature, rois, counts),
        lambda: case.reference(feature, rois, counts),
        lambda: torch_op(*map(torch.from_numpy, (feature, rois, counts)), *case.attributes().values()),
    ):
        with pytest.raises(ValueError, match="at most 4096 cells a side"):
            call()


def test_onnxs_own_evaluator_agrees():
    case = Case()
    feature, rois, counts = case.arrays()
    found = case.run(("portable", "onnx"), feature, rois, counts)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))


HYPOTHESIS = Case(size=(9, 7), stride=8, out=(3, 7), rows=3)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    corners=st.lists(st.tuples(*[st.floats(-60, 130, width=32)] * 4), min_size=1, max_size=9),
    counts=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    way=st.sampled_from([NATIVE, PORTABLE, OPENVINO, *CPU]),
)
def test_any_boxes(corners, counts, way):
    rois = np.resize(np.array(corners, np.float32), (3, 3, 4))
    feature, _, _ = HYPOTHESIS.arrays()
    counts = np.array(counts, np.int32)
    np.testing.assert_array_equal(
        HYPOTHESIS.run(way, feature, rois, counts), HYPOTHESIS.reference(feature, rois, counts)
    )
