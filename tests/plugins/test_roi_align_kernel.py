"""RegionRoiAlign's CUDA kernels, run on the CPU, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import bits, launch, thread_order  # noqa: F401 (a fixture)

from regionrt.plugins.roi_align.reference import level_thresholds, roi_align

SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]
# fp32: products and sums of a few dozen terms; 16 bits: the result is rounded once to its type.
TOLERANCES = {"f32": 1e-5, "f16": 2e-3, "bf16": 1e-2}


def to_bits(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        whole = values.astype(np.float32).view(np.uint32)
        return ((whole + 0x7FFF + (whole >> 16 & 1)) >> 16).astype(np.uint16)
    return values.astype(np.float16 if kind == "f16" else np.float32)


def from_bits(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def rois_for(rng: np.random.Generator, images: int, most: int, side: int) -> np.ndarray:
    """Boxes of all sizes, some beyond the canvas, some empty, some inverted."""
    corners = rng.uniform(-0.2 * side, 1.2 * side, (images, most, 2, 2)).astype(np.float32)
    rois = np.concatenate([corners.min(2), corners.max(2)], -1)
    if most:
        rois[:, ::7, 2:] = rois[:, ::7, :2]
        rois[:, ::11] = rois[:, ::11][..., [2, 3, 0, 1]]
    return np.ascontiguousarray(rois)


def run(
    layout: str, kind: str, features: list[np.ndarray], rois: np.ndarray, counts: np.ndarray, **options
) -> np.ndarray:
    """[N, P, C, h, w] float32 from the kernel; the output's memory is full of NaN before."""
    scales, (height, width) = options["spatial_scales"], options["output_size"]
    images, most, channels = *rois.shape[:2], features[0].shape[1]
    thresholds = level_thresholds(scales, options.get("canonical_scale", 224.0), options.get("canonical_level", 4))
    thresholds = [*thresholds, *[np.nan] * (len(scales) - len(thresholds))]
    moved = [f.transpose(0, 2, 3, 1) if layout == "nhwc" else f for f in features]
    maps = [np.ascontiguousarray(to_bits(f, kind)) for f in moved]
    shape = (height, width, channels) if layout == "nhwc" else (channels, height, width)
    out = np.full((images, most, *shape), np.nan, np.float32)
    out = to_bits(out, kind) if kind != "bf16" else np.full(out.shape, 0x7FC0, np.uint16)
    sizes = [size for f in features for size in f.shape[2:]]
    numbers = [*sizes, *map(bits, scales), *map(bits, thresholds), channels, height, width]
    numbers += [options["sampling_ratio"], options["aligned"], options["mode"] == "max"]
    kernel = f"roi_align_{layout}_{kind}_{len(features)}"
    launch("roi_align", kernel, (most, images, options.get("slices", 1)), 256, [*maps, rois, counts, *numbers, out])
    found = from_bits(out, kind)
    return found.transpose(0, 1, 4, 2, 3) if layout == "nhwc" else found


def check(
    layout: str, kind: str, levels: int, seed: int = 0, images: int = 1, most: int = 6, channels: int = 5, **options
) -> None:
    rng = np.random.default_rng(seed)
    side = 150
    options = {"output_size": (3, 4), "sampling_ratio": 2, "aligned": False, "mode": "avg"} | options
    options |= {"spatial_scales": SCALES[:levels], "canonical_scale": 60.0, "canonical_level": 3}
    features = [
        from_bits(
            to_bits(
                rng.standard_normal((images, channels, -(-side // 2 ** (k + 2)), -(-side // 2 ** (k + 2)) + 1)), kind
            ),
            kind,
        )
        for k in range(levels)
    ]
    rois = rois_for(rng, images, most, side)
    counts = rng.integers(0, most + 1, images).astype(np.int32)
    if images:
        counts[0] = most
    slices = options.pop("slices", 1)
    expected = roi_align(features, rois, counts, **options)
    found = run(layout, kind, features, rois, counts, slices=slices, **options)
    worst = np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[kind] * worst, rtol=0)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_every_kernel(layout: str, kind: str, levels: int) -> None:
    check(layout, kind, levels, channels=8)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [1, 2, 3, 0, -1])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_modes(layout: str, ratio: int, mode: str, aligned: bool) -> None:
    check(layout, "f32", 3, sampling_ratio=ratio, mode=mode, aligned=aligned)


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 16])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_odd_channels_and_slices(layout: str, channels: int) -> None:
    for slices in (1, 2, 3):
        check(layout, "f16", 2, channels=channels, slices=slices, images=2)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_more_samples_than_are_kept(layout: str) -> None:
    check(layout, "f32", 1, output_size=(2, 2), sampling_ratio=70, most=2, channels=4)
    check(layout, "f32", 1, output_size=(1, 1), sampling_ratio=0, most=3, channels=4)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_rows_beyond_the_count_are_zero_and_batches_do_not_mix(layout: str) -> None:
    check(layout, "f32", 2, images=3, most=4, seed=5)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_no_rois(layout: str) -> None:
    features = [np.ones((1, 4, 5, 5), np.float32)]
    options = {"spatial_scales": [0.25], "output_size": (2, 2), "sampling_ratio": 2, "aligned": False, "mode": "avg"}
    found = run(layout, "f32", features, np.full((1, 3, 4), np.nan, np.float32), np.zeros(1, np.int32), **options)
    assert not found.any()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_what_lies_outside_is_not_read(layout: str) -> None:
    """A RoI far from the map reads nothing of it, not even times zero."""
    features = [np.full((1, 4, 5, 5), np.nan, np.float32)]
    options = {"spatial_scales": [0.25], "output_size": (2, 2), "sampling_ratio": 2, "aligned": False, "mode": "avg"}
    rois = np.array([[[900, 900, 950, 950], [np.nan, 0, 5, 5], [-1e30, -1e30, -1e29, -1e29]]], np.float32)
    found = run(layout, "f32", features, rois, np.array([3], np.int32), **options)
    assert not found.any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    levels=st.integers(1, 5),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    ratio=st.integers(-1, 4),
    aligned=st.booleans(),
    mode=st.sampled_from(["avg", "max"]),
    layout=st.sampled_from(["nchw", "nhwc"]),
    channels=st.integers(1, 9),
    images=st.integers(1, 2),
    most=st.integers(1, 5),
)
def test_anything(seed, levels, size, ratio, aligned, mode, layout, channels, images, most) -> None:
    check(
        layout,
        "f32",
        levels,
        seed,
        images,
        most,
        channels,
        output_size=size,
        sampling_ratio=ratio,
        aligned=aligned,
        mode=mode,
    )
