"""The CUDA kernel of the resize onto the canvas, run on the CPU: the reference's bytes, and zeros beside the photo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import launch, thread_order  # noqa: F401 (a fixture)

from regionrt.plugins.resize.reference import resize_bilinear


def check(source: tuple[int, int], target: tuple[int, int], canvas: tuple[int, int], seed: int = 0) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*source, 3), np.uint8)
    out = np.full((*canvas, 3), 0xCB, np.uint8)
    grid = (-(-canvas[1] // 256), -(-canvas[0] // 8))
    launch("resize", "resize", grid, 256, [image, *source, *target, *canvas, out])
    expected = np.zeros((*canvas, 3), np.uint8)
    expected[: target[0], : target[1]] = resize_bilinear(image, *target)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.usefixtures("thread_order")
@pytest.mark.parametrize(
    ("source", "target", "canvas"),
    [
        ((31, 40), (53, 67), (64, 96)),
        ((53, 67), (31, 40), (32, 40)),
        ((7, 300), (7, 300), (8, 304)),  # no resize, more than a block wide
        ((1, 1), (5, 6), (5, 6)),
        ((40, 1), (3, 1), (9, 2)),
        ((60, 64), (30, 32), (32, 32)),  # means of four, many of them half between two levels
    ],
)
def test_the_reference(source, target, canvas):
    check(source, target, canvas)


@settings(max_examples=25, deadline=None)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    beside=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 2**31),
)
def test_anything(source, target, beside, seed):
    check(source, target, (target[0] + beside[0], target[1] + beside[1]), seed)
