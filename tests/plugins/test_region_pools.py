"""RegionRoiPool and RegionPyramidPool: every form against the reference; exact, never nearly right."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_op import CPU, NATIVE, OPENVINO, PORTABLE, WAYS
from region_pools import POOLS, PyramidPool, RoiPool

from regionrt.export.errors import ExportError

DYNAMIC = {"feature": ("N", 3, "h", "w"), "rois": ("N", 6, 4), "counts": ("N",)}
CASES = {
    "RoIs: a few bins": RoiPool(),
    "RoIs: a map of one cell": RoiPool(size=(1, 1)),
    "RoIs: a map of one row": RoiPool(size=(1, 23), out=(2, 5)),
    "RoIs: more bins than cells": RoiPool(size=(4, 3), out=(7, 7)),
    "RoIs: one bin": RoiPool(out=(1, 1), size=(33, 18)),
    "RoIs: a scale that is no power of two": RoiPool(stride=11.7, size=(40, 31)),
    "RoIs: bins that a division in float32 makes longer": RoiPool(stride=1, size=(60, 64), out=(7, 13)),
    "RoIs: one image": RoiPool(counts=(4,)),
    "RoIs: nothing in any image": RoiPool(counts=(0, 0)),
    "pyramid: the paper's": PyramidPool(),
    "pyramid: the paper's first": PyramidPool(bins=(4, 2, 1), size=(10, 7)),
    "pyramid: one level": PyramidPool(bins=(5,)),
    "pyramid: levels in any order, some twice": PyramidPool(bins=(1, 4, 3, 1, 6)),
    "pyramid: bins that float32 divides wrongly": PyramidPool(bins=(7, 13), size=(59, 62), stride=1.5),
    "pyramid: eight levels": PyramidPool(bins=(8, 7, 6, 5, 4, 3, 2, 1), size=(6, 9)),
    "pyramid: a map of one cell": PyramidPool(size=(1, 1)),
    "pyramid: a map of one row": PyramidPool(size=(1, 23)),
    "pyramid: more bins than cells": PyramidPool(size=(4, 3), bins=(9, 1)),
    "pyramid: a scale that is no power of two": PyramidPool(stride=11.7, size=(40, 31)),
    "pyramid: one image": PyramidPool(counts=(4,)),
    "pyramid: nothing in any image": PyramidPool(counts=(0, 0)),
}

each_way = pytest.mark.parametrize("way", WAYS, ids="-".join)
each_pool = pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.op)


@each_way
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_form_computes_what_the_reference_does(case, way):
    feature, rois, counts = case.arrays()
    np.testing.assert_array_equal(case.run(way, feature, rois, counts), case.reference(feature, rois, counts))


@pytest.mark.parametrize("way", CPU, ids="-".join)
@pytest.mark.parametrize("given", [{"counts": (0, 0), "rows": 0}, {"counts": ()}], ids=["no rows", "no images"])
@each_pool
def test_nothing_to_do(pool, given, way):
    case = pool(**given)
    shape = case.run(way, *case.arrays()).shape
    assert shape[:2] == (len(case.counts), case.rows)
    assert shape[2:] == case.reference(*pool().arrays()).shape[2:]


@each_way
@each_pool
def test_boxes_that_are_reversed_or_points_or_far_outside(pool, way):
    case = pool(rows=8, counts=(8,))
    feature, rois, counts = case.arrays()
    rois[0] = [
        [20, 20, 20, 20], [0, 0, 0, 0], [100, 90, 20, 10], [1e9, 1e9, 2e9, 2e9], [-1e30, -1e30, 1e30, 1e30],
        [-np.inf, 0, np.inf, 50], [np.nan, 0, 50, 50], [0, 0, 50, np.nan],
    ]  # fmt: skip
    found = case.run(way, feature, rois, counts)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))
    assert not found[0, [3, 6, 7]].any()
    assert (found[0, :3] != 0).reshape(3, -1).any(1).all()


@each_way
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
@each_pool
def test_rows_beyond_the_count_are_zero(pool, garbage, way):
    case = pool()
    feature, rois, counts = case.arrays()
    expected = case.reference(feature, rois, counts)
    for image, count in enumerate(counts):
        rois[image, count:] = garbage
    np.testing.assert_array_equal(case.run(way, feature, rois, counts), expected)


@each_way
@each_pool
def test_a_broken_image_does_not_reach_its_neighbours(pool, way):
    case = pool()
    feature, rois, counts = case.arrays()
    whole = case.run(way, feature, rois, counts)
    feature[0] = np.nan
    np.testing.assert_array_equal(case.run(way, feature, rois, counts)[1:], whole[1:])


@each_way
@each_pool
def test_negative_features_and_ties(pool, way):
    """The maximum of negative cells is negative, and zero only where a bin is empty."""
    case = pool()
    feature, rois, counts = case.arrays()
    feature = -np.round(np.abs(feature)) - 1
    found = case.run(way, feature, rois, counts)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))
    assert found.min() < 0


@each_way
@pytest.mark.parametrize("size", [(13, 17), (70, 35)])
@pytest.mark.parametrize("case", [RoiPool(out=(2, 2)), PyramidPool()], ids=lambda case: case.op)
def test_maps_of_any_size_in_one_model(case, size, way):
    """With a dynamic canvas the graph does not know the map's size; bins of many cells are gone through in steps."""
    case = type(case)(**{**vars(case), "size": size})
    feature, rois, counts = case.arrays()
    rois[0, 0] = [-9, -9, 3000, 3000]
    found = case.run(way, feature, rois, counts, DYNAMIC)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))


@pytest.mark.parametrize(
    ("dtype", "way"),
    [(np.float16, way) for way in WAYS if way not in CPU] + [(ml_dtypes.bfloat16, way) for way in WAYS],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value.__name__,
)
@each_pool
def test_features_of_16_bits_keep_boxes_in_32(pool, dtype, way):
    """A maximum is one of the cells, whatever their type; a box of 8 bits would lie pixels away."""
    case = pool(size=(21, 63))
    feature, rois, counts = case.arrays(dtype)
    found = case.run(way, feature, rois, counts).astype(np.float32)
    np.testing.assert_array_equal(found, case.reference(feature.astype(np.float32), rois, counts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "case", [RoiPool(out=(7, 7)), PyramidPool(), PyramidPool(bins=(2, 7, 14))], ids=["RoIs", "paper's", "finer"]
)
def test_the_torch_op_computes_what_the_reference_does(case, dtype):
    case = type(case)(**{**vars(case), "size": (21, 63)})
    feature, rois, counts = case.arrays()
    rois[0, :3] = [[np.nan, 0, 9, 9], [-1e30, 0, 1e30, 90], [300, 200, 10, 10]]
    tensor = torch.from_numpy(feature).to(dtype)
    found = case.torch(tensor, torch.from_numpy(rois), torch.from_numpy(counts))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.float().numpy(), case.reference(tensor.float().numpy(), rois, counts))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (RoiPool(size=(1, 4097), counts=(1,), rows=1), "at most 4096 cells a side"),
        (PyramidPool(size=(1, 4097), counts=(1,), rows=1), "at most 4096 cells a side"),
        (PyramidPool(bins=(65,)), "levels of 1 to 64"),
        (PyramidPool(bins=(1,) * 9), "1 to 8 levels"),
    ],
    ids=["RoIs: a large map", "pyramid: a large map", "too many bins", "too many levels"],
)
def test_what_is_refused(case, message):
    feature, rois, counts = case.arrays()
    for form in (NATIVE, PORTABLE):
        with pytest.raises(ExportError, match=message):
            case.run(form, feature, rois, counts)
    for call in (
        lambda: case.run(CPU[-1], feature, rois, counts),
        lambda: case.reference(feature, rois, counts),
        lambda: case.torch(*map(torch.from_numpy, (feature, rois, counts))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@each_pool
def test_onnxs_own_evaluator_agrees(pool):
    case = pool()
    feature, rois, counts = case.arrays()
    found = case.run(("portable", "onnx"), feature, rois, counts)
    np.testing.assert_array_equal(found, case.reference(feature, rois, counts))


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(
    corners=st.lists(st.tuples(*[st.floats(-60, 130, width=32)] * 4), min_size=1, max_size=9),
    counts=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    way=st.sampled_from([NATIVE, PORTABLE, OPENVINO, *CPU]),
    case=st.sampled_from(
        [RoiPool(size=(9, 7), stride=8, out=(3, 7), rows=3), PyramidPool(size=(9, 7), stride=8, bins=(4, 3, 1), rows=3)]
    ),
)
def test_any_boxes(corners, counts, way, case):
    rois = np.resize(np.array(corners, np.float32), (3, 3, 4))
    feature, _, _ = case.arrays()
    counts = np.array(counts, np.int32)
    np.testing.assert_array_equal(case.run(way, feature, rois, counts), case.reference(feature, rois, counts))
