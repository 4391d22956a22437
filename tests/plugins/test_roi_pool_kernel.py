"""RegionRoiPool's CUDA kernels, run on the CPU: the reference's maxima, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import bits, thread_order  # noqa: F401 (a fixture)
from pooling_kernels import LAYOUTS, TYPES, regions, rounded, run

from regionrt.plugins.roi_pool.reference import roi_pool


def pool(layout, kind, feature, rois, counts, scale, size, slices=1) -> np.ndarray:
    channels = feature.shape[1]
    shape = (*size, channels) if layout == "nhwc" else (channels, *size)
    found = run("roi_pool", layout, kind, feature, rois, counts, [*size, bits(scale)], shape, slices)
    return found.transpose(0, 1, 4, 2, 3) if layout == "nhwc" else found


def check(layout, kind="f32", seed=0, images=1, most=9, channels=5, side=(11, 14), size=(3, 4), stride=16.0, slices=1):
    rng = np.random.default_rng(seed)
    feature = rounded(rng.standard_normal((images, channels, *side), np.float32), kind)
    rois = regions(rng, images, most, (side[0] * stride, side[1] * stride))
    counts = rng.integers(0, most + 1, images).astype(np.int32)
    counts[:1] = most
    expected = roi_pool(feature, rois, counts, spatial_scale=1 / stride, output_size=size)
    found = pool(layout, kind, feature, rois, counts, 1 / stride, size, slices)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kernel(layout: str, kind: str) -> None:
    check(layout, kind, images=2, channels=8)


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_odd_channels_and_slices(layout: str, channels: int) -> None:
    for slices in (1, 2, 3):
        check(layout, "f16", channels=channels, slices=slices, images=2)


@pytest.mark.parametrize("bins", [6, 7, 13])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_edge_is_off_by_a_cell(layout: str, bins: int) -> None:
    """RoIs of every length, on a map whose maxima say where a bin ends."""
    side = 130
    ramp = np.arange(side, dtype=np.float32)
    feature = np.stack([ramp, -ramp])[None, :, None]
    rois = np.stack([0 * ramp, 0 * ramp, ramp, ramp], -1)[None]
    counts = np.array([side], np.int32)
    expected = roi_pool(feature, rois, counts, spatial_scale=1.0, output_size=(1, bins))
    np.testing.assert_array_equal(pool(layout, "f32", feature, rois, counts, 1.0, (1, bins)), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_rois_and_nothing_but_negative_cells(layout: str) -> None:
    feature = np.full((1, 4, 5, 5), -2, np.float32)
    rois = np.array([[[0, 0, 4, 4], [np.nan] * 4, [40, 40, 50, 50]]], np.float32)
    found = pool(layout, "f32", feature, rois, np.array([3], np.int32), 1.0, (2, 2))
    assert found[0, :, 0, 0, 0].tolist() == [-2, 0, 0]
    assert not pool(layout, "f32", feature, rois, np.zeros(1, np.int32), 1.0, (2, 2)).any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    side=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stride=st.floats(0.5, 40, width=32),
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(list(TYPES)),
    channels=st.integers(1, 9),
    most=st.integers(1, 9),
)
def test_anything(seed, side, size, stride, layout, kind, channels, most) -> None:
    check(layout, kind, seed, 2, most, channels, side, size, stride)
