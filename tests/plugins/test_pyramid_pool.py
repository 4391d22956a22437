"""RegionPyramidPool: the reference against torch's adaptive pooling of crops, every form against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, OPENVINO, PORTABLE, WAYS, run
from torch.nn.functional import adaptive_max_pool2d

from regionrt.export.errors import ExportError
from regionrt.plugins.pyramid_pool.reference import exact_in_float32, pyramid_pool
from regionrt.plugins.pyramid_pool.torch_op import pyramid_pool as torch_op


@dataclass(frozen=True)
class Case:
    """A map of `size` cells, of so many pixels each, and what is asked of it."""

    size: tuple[int, int] = (13, 17)
    stride: float = 16
    bins: tuple[int, ...] = (6, 3, 2, 1)
    counts: tuple[int, ...] = (6, 0, 3)  # full, none, some
    rows: int = 6

    def attributes(self) -> dict:
        return {"spatial_scale": 1 / self.stride, "bins": list(self.bins)}

    def arrays(self, dtype=np.float32, seed: int = 0):
        rng = np.random.default_rng(seed)
        feature = rng.normal(size=(len(self.counts), 3, *self.size)).astype(dtype)
        extent = np.array([self.size[1], self.size[0]]) * self.stride
        corners = rng.uniform(-0.4, 1.4, (len(self.counts), self.rows, 2, 2)) * extent
        rois = np.concatenate([corners.min(2), corners.max(2)], -1).astype(np.float32)
        return feature, rois, np.array(self.counts, np.int32)

    def reference(self, feature, rois, counts):
        return pyramid_pool(feature, rois, counts, spatial_scale=1 / self.stride, bins=self.bins)

    def run(self, way, feature, rois, counts, shapes=None):
        inputs = {"feature": feature, "rois": rois, "counts": counts}
        return run("RegionPyramidPool", way, inputs, self.attributes(), shapes)[0]


DYNAMIC = {"feature": ("N", 3, "h", "w"), "rois": ("N", 6, 4), "counts": ("N",)}
CASES = {
    "the paper's pyramid": Case(),
    "its first one": Case(bins=(4, 2, 1), size=(10, 7)),
    "one level": Case(bins=(5,)),
    "levels in any order, some twice": Case(bins=(1, 4, 3, 1, 6)),
    "bins that float32 divides wrongly": Case(bins=(7, 13), size=(59, 62), stride=1.5),
    "eight levels": Case(bins=(8, 7, 6, 5, 4, 3, 2, 1), size=(6, 9)),
    "a map of one cell": Case(size=(1, 1)),
    "a map of one row": Case(size=(1, 23)),
    "more bins than cells": Case(size=(4, 3), bins=(9, 1)),
    "a scale that is no power of two": Case(stride=11.7, size=(40, 31)),
    "one image": Case(counts=(4,)),
    "nothing in any image": Case(counts=(0, 0)),
}


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_form_computes_what_the_reference_does(case, way):
    feature, rois, counts = case.arrays()
    np.testing.assert_array_equal(case.run(way, feature, rois, counts), case.reference(feature, rois, counts))


def cells_inside(low: float, high: float, stride: float, side: int) -> list[int]:
    """By trying every cell, in fractions: those whose middle lies strictly inside, or the one under the middle."""
    ends = [Fraction(float(low)) / Fraction(stride), Fraction(float(high)) / Fraction(stride)]
    everywhere = range(-200, 200)
    inside = [i for i in everywhere if ends[0] < i + Fraction(1, 2) < ends[1]]
    if not inside:
        inside = [i for i in everywhere if i <= sum(ends) / 2 < i + 1]
    return [i for i in inside if 0 <= i < side]


@pytest.mark.parametrize("bins", [(6, 3, 2, 1), (4, 2, 1), (7, 5)])
def test_the_reference_is_torchs_adaptive_pooling_of_crops(bins):
    case = Case(bins=bins, rows=40, counts=(40,), size=(9, 12))
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
    case = Case(size=(2, 2), stride=1, bins=(1, 2), counts=(1,), rows=1)
    found = case.run(way, feature, np.array([[[0, 0, 2, 2]]], np.float32), np.array([1], np.int32))
    assert found[0, 0].tolist() == [3, 7, 0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 7, 11, 14])
def test_no_edge_is_off_by_a_cell(bins):
    """Windows of each length, on a map that grows from left to right, so that a maximum says where its bin ends."""
    side = 130
    ramp = np.arange(side, dtype=np.float32)
    feature = np.stack([ramp, -ramp])[None, :, None]
    rois, counts = np.stack([0 * ramp, 0 * ramp, ramp + 1, 0 * ramp + 1], -1)[None], np.array([side], np.int32)
    case = Case(stride=1, size=(1, side), bins=(bins,), rows=side)
    expected = case.reference(feature, rois, counts)
    assert exact_in_float32(bins) == (bins in (1, 2, 3, 6))
    for way in (NATIVE, PORTABLE, OPENVINO, *CPU):
        np.testing.assert_array_equal(case.run(way, feature, rois, counts), expected)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_a_level_larger_than_the_window_has_bins_that_overlap(way):
    case = Case(bins=(6, 3), counts=(1,), rows=1, size=(5, 5))
    feature, _, counts = case.arrays()
    found = case.run(way, feature, np.array([[[34, 34, 62, 62]]], np.float32), counts)  # two by two cells
    np.testing.assert_array_equal(
        found[0, 0, :108].reshape(3, 6, 6)[:, ::3, ::3], feature[0, :, 2:4, 2:4]
    )  # the first and the fourth sixth
    assert (found != 0).all()


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
    assert (found[0, [0, 1, 2, 4, 5]] != 0).all()


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
    case = Case()
    feature, rois, counts = case.arrays()
    feature = -np.round(np.abs(feature)) - 1
    found = case.run(way, feature, rois, counts)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))
    assert found.min() < 0


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@pytest.mark.parametrize("size", [(13, 17), (40, 9), (70, 35)])
def test_maps_of_any_size_in_one_model(size, way):
    case = Case(size=size)
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
    case = Case(size=(21, 63))
    feature, rois, counts = case.arrays(dtype)
    found = case.run(way, feature, rois, counts).astype(np.float32)
    np.testing.assert_array_equal(found, case.reference(feature.astype(np.float32), rois, counts))


@pytest.mark.parametrize("bins", [(6, 3, 2, 1), (2, 7, 14), (5,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_torch_op_computes_what_the_reference_does(dtype, bins):
    case = Case(size=(21, 63), bins=bins)
    feature, rois, counts = case.arrays()
    rois[0, :3] = [[np.nan, 0, 9, 9], [-1e30, 0, 1e30, 90], [300, 200, 10, 10]]
    tensor = torch.from_numpy(feature).to(dtype)
    found = torch_op(tensor, torch.from_numpy(rois), torch.from_numpy(counts), 1 / 16, case.bins)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.float().numpy(), case.reference(tensor.float().numpy(), rois, counts))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case(size=(1, 4097), counts=(1,), rows=1), "at most 4096 cells"),
        (Case(bins=(65,)), "levels of 1 to 64"),
        (Case(bins=(1,) * 9), "1 to 8 levels"),
    ],
)
def test_what_is_refused(case, message):
    feature, rois, counts = case.arrays()
    for form in (NATIVE, PORTABLE):
        with pytest.raises(ExportError, match=message):
            case.run(form, feature, rois, counts)
    for call in (
        lambda: case.run(CPU[-1], feature, rois, counts),
        lambda: case.reference(feature, rois, counts),
        lambda: torch_op(*map(torch.from_numpy, (feature, rois, counts)), 1 / 16, case.bins),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_onnxs_own_evaluator_agrees():
    case = Case()
    feature, rois, counts = case.arrays()
    found = case.run(("portable", "onnx"), feature, rois, counts)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))


HYPOTHESIS = Case(size=(9, 7), stride=8, bins=(4, 3, 1), rows=3)


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
