"""RegionNms' CUDA kernel, run on the CPU: the same boxes as the reference, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import bits, launch, thread_order  # noqa: F401 (a fixture)

from regionrt.plugins.nms.reference import nms


def run(boxes: np.ndarray, classes: np.ndarray, threshold: float, num_classes: int) -> np.ndarray:
    images, rows = classes.shape
    keep = np.full((images, rows), 0xCB, np.uint8)
    arguments = [np.ascontiguousarray(boxes), classes, rows, num_classes, bits(threshold), keep]
    launch("nms", "nms", (num_classes, images), 256, arguments)
    assert set(np.unique(keep)) <= {0, 1}
    return keep.astype(bool)


def check(boxes: np.ndarray, classes: np.ndarray, threshold: float = 0.5, num_classes: int = 3) -> None:
    boxes, classes = boxes.astype(np.float32), classes.astype(np.int32)
    expected = nms(boxes, classes, iou_threshold=threshold)
    np.testing.assert_array_equal(run(boxes, classes, threshold, num_classes), expected)


def crowd(rng: np.random.Generator, images: int, rows: int, side: float = 40) -> np.ndarray:
    """Boxes that overlap a lot, on a coarse grid, so that many IoUs lie exactly at a threshold and many are equal."""
    corners = rng.integers(0, side, (images, rows, 2))
    sizes = rng.integers(0, 12, (images, rows, 2))
    return np.concatenate([corners, corners + sizes], -1).astype(np.float32)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 64, 100, 257, 700])
def test_sizes(rows: int) -> None:
    rng = np.random.default_rng(rows)
    check(crowd(rng, 2, rows), rng.integers(-1, 3, (2, rows)))


@pytest.mark.parametrize("threshold", [0.0, 1 / 3, 0.5, 0.7, 1.0])
def test_thresholds(threshold: float) -> None:
    rng = np.random.default_rng(7)
    check(crowd(rng, 1, 200), rng.integers(-1, 2, (1, 200)), threshold)


def test_one_class() -> None:
    rng = np.random.default_rng(3)
    check(crowd(rng, 1, 500, 60), np.zeros((1, 500)), 0.7, 1)


def test_the_most_boxes() -> None:
    rng = np.random.default_rng(3)
    check(crowd(rng, 1, 4096, 400), rng.integers(-1, 20, (1, 4096)), 0.5, 20)


def test_a_chain_in_which_every_box_overlaps_the_next() -> None:
    starts = np.arange(300) * 4.0
    boxes = np.stack([starts, np.zeros(300), starts + 10, np.full(300, 10.0)], -1)[None]
    check(boxes, np.zeros((1, 300)), 0.3, 1)


def test_padding_only() -> None:
    boxes = np.full((2, 50, 4), np.nan)
    check(boxes, np.full((2, 50), -1))


def test_nan_boxes_suppress_nothing() -> None:
    rng = np.random.default_rng(5)
    boxes = crowd(rng, 1, 120)
    boxes[:, ::5] = np.nan
    check(boxes, rng.integers(0, 2, (1, 120)))


def test_equal_boxes_keep_the_first() -> None:
    check(np.tile(np.array([3, 4, 20, 30.0]), (1, 90, 1)), np.arange(90)[None] % 3)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 90),
    side=st.integers(1, 60),
    threshold=st.floats(0, 1, width=32),
    num_classes=st.integers(1, 5),
)
def test_anything(seed: int, rows: int, side: int, threshold: float, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    check(crowd(rng, 1, rows, side), rng.integers(-1, num_classes, (1, rows)), threshold, num_classes)
