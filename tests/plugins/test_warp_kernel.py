"""RegionWarp's CUDA kernels, run on the CPU, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import thread_order  # noqa: F401 (a fixture)
from pooling_kernels import LAYOUTS, TYPES, regions, rounded, run

from regionrt.plugins.warp.reference import warp

TOLERANCES = {"f32": 1e-5, "f16": 2e-3, "bf16": 1e-2}  # the 16-bit types round the result once


def check(layout, kind="f32", seed=0, images=1, most=9, channels=3, side=(41, 54), size=(13, 10), context=2, slices=1):
    rng = np.random.default_rng(seed)
    given_images = rounded(rng.standard_normal((images, channels, *side), np.float32), kind)
    rois = regions(rng, images, most, side)
    counts = rng.integers(0, most + 1, images).astype(np.int32)
    counts[:1] = most
    expected = warp(given_images, rois, counts, output_size=size, context=context)
    shape = (*size, channels) if layout == "nhwc" else (channels, *size)
    found = run("warp", layout, kind, given_images, rois, counts, [*size, context], shape, slices)
    if layout == "nhwc":
        found = found.transpose(0, 1, 4, 2, 3)
    atol = TOLERANCES[kind] * np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(found, expected, atol=atol, rtol=0)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kernel(layout: str, kind: str) -> None:
    check(layout, kind, images=2)


@pytest.mark.parametrize("channels", [1, 4, 7])
@pytest.mark.parametrize("slices", [1, 2, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_odd_channels_and_slices(layout: str, slices: int, channels: int) -> None:
    check(layout, channels=channels, slices=slices, images=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_pixels_than_taps_are_kept(layout: str) -> None:
    check(layout, size=(3, 260), most=2, context=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_rois(layout: str) -> None:
    image = np.full((1, 3, 5, 5), np.nan, np.float32)
    rois = np.array([[[np.nan] * 4, [900, 900, 950, 950], [-1e30, -1e30, -1e29, -1e29]]], np.float32)
    shape = (4, 4, 3) if layout == "nhwc" else (3, 4, 4)
    for count in (0, 3):
        counts = np.array([count], np.int32)
        assert not run("warp", layout, "f32", image, rois, counts, [4, 4, 0], shape).any()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(7, 20), st.integers(7, 20)),
    context=st.integers(0, 3),
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(list(TYPES)),
    channels=st.integers(1, 5),
    most=st.integers(1, 6),
)
def test_anything(seed, side, size, context, layout, kind, channels, most) -> None:
    check(layout, kind, seed, 2, most, channels, side, size, context)
