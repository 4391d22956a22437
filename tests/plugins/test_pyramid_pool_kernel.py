"""RegionPyramidPool's CUDA kernels, run on the CPU: the reference's maxima, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import bits, thread_order  # noqa: F401 (a fixture)
from pooling_kernels import LAYOUTS, TYPES, regions, rounded, run

from regionrt.plugins.pyramid_pool.reference import pyramid_pool


def pool(layout, kind, feature, rois, counts, scale, bins, slices=1) -> np.ndarray:
    """[N, P, C · Σb²] in the reference's order."""
    channels, number = feature.shape[1], sum(b * b for b in bins)
    numbers = [bits(scale), *bins, *[0] * (8 - len(bins))]
    shape = (number, channels) if layout == "nhwc" else (number * channels,)
    found = run("pyramid_pool", layout, kind, feature, rois, counts, numbers, shape, slices)
    if layout == "nchw":
        return found
    ends = np.cumsum([b * b for b in bins])
    levels = np.split(found, ends[:-1], axis=2)
    return np.concatenate([v.transpose(0, 1, 3, 2).reshape(*v.shape[:2], -1) for v in levels], 2)


def check(
    layout, kind="f32", seed=0, images=1, most=9, channels=5, side=(11, 14), bins=(6, 3, 2, 1), stride=16.0, slices=1
):
    rng = np.random.default_rng(seed)
    feature = rounded(rng.standard_normal((images, channels, *side), np.float32), kind)
    rois = regions(rng, images, most, (side[0] * stride, side[1] * stride))
    counts = rng.integers(0, most + 1, images).astype(np.int32)
    counts[:1] = most
    expected = pyramid_pool(feature, rois, counts, spatial_scale=1 / stride, bins=bins)
    np.testing.assert_array_equal(pool(layout, kind, feature, rois, counts, 1 / stride, bins, slices), expected)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kernel(layout: str, kind: str) -> None:
    check(layout, kind, images=2, channels=8)


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_odd_channels_and_slices(layout: str, channels: int) -> None:
    for slices in (1, 2, 3):
        check(layout, "f16", channels=channels, slices=slices, images=2, bins=(1, 4))


@pytest.mark.parametrize("bins", [(1,), (8, 7, 6, 5, 4, 3, 2, 1), (1, 5, 5), (13,)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_levels(layout: str, bins: tuple[int, ...]) -> None:
    check(layout, bins=bins, side=(30, 5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_rois_and_nothing_but_negative_cells(layout: str) -> None:
    feature = np.full((1, 4, 5, 5), -2, np.float32)
    rois = np.array([[[0, 0, 4, 4], [np.nan] * 4, [40, 40, 50, 50], [2, 2, 2, 2]]], np.float32)
    found = pool(layout, "f32", feature, rois, np.array([4], np.int32), 1.0, (2, 1))
    assert found[0, :, 0].tolist() == [-2, 0, 0, -2]
    assert not pool(layout, "f32", feature, rois, np.zeros(1, np.int32), 1.0, (2, 1)).any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    side=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    bins=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    stride=st.floats(0.5, 40, width=32),
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(list(TYPES)),
    channels=st.integers(1, 9),
    most=st.integers(1, 9),
)
def test_anything(seed, side, bins, stride, layout, kind, channels, most) -> None:
    check(layout, kind, seed, 2, most, channels, side, bins, stride)
