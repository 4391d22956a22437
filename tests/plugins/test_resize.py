"""The resize onto the canvas, by every variant, to the byte as the plain loops have it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionrt.plugins.resize.reference import resize_bilinear as reference
from regionrt.runtime import native

VARIANTS = native.usable_variants()


@pytest.fixture(params=VARIANTS)
def variant(request):
    with native.using(request.param):
        yield request.param


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("source", "target"),
    [((31, 40), (53, 67)), ((53, 67), (31, 40)), ((60, 80), (45, 60)), ((9, 9), (9, 20)), ((9, 9), (20, 9)),
     ((7, 7), (7, 7)), ((1, 1), (5, 6)), ((40, 1), (3, 4)), ((1, 40), (3, 4)), ((50, 60), (1, 1)), ((2, 3), (70, 90))],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resize_is_the_loops(variant, source, target, channels):
    image = photo(*source, channels)
    np.testing.assert_array_equal(native.resize_bilinear(image, *target), reference(image, *target))


def test_a_value_half_between_two_levels_goes_to_the_even_one(variant):
    """At half the size each value is the mean of four, many of them .5."""
    image = photo(60, 64)
    found = native.resize_bilinear(image, 30, 32).astype(np.float32)
    mean = image.reshape(30, 2, 32, 2, 3).mean((1, 3))
    assert (mean % 1 == 0.5).sum() > 100
    np.testing.assert_array_equal(found, np.rint(mean))


def test_part_of_a_canvas_is_written_and_nothing_else(variant):
    canvas = np.full((50, 70, 3), 9, np.uint8)
    image = photo(20, 30)
    native.resize_bilinear(image, 41, 61, out=canvas[:41, :61])
    np.testing.assert_array_equal(canvas[:41, :61], reference(image, 41, 61))
    assert (canvas[41:] == 9).all()
    assert (canvas[:, 61:] == 9).all()


@pytest.mark.parametrize("view", [np.s_[::-1, ::-1], np.s_[:, ::2], np.s_[::3], np.s_[..., ::-1], np.s_[5:, 3:-4]])
def test_views_are_read_as_they_look(variant, view):
    image = photo(40, 50)[view]
    np.testing.assert_array_equal(native.resize_bilinear(image, 33, 47), reference(image, 33, 47))


def test_the_last_pixel_of_an_image_is_not_read_beyond(variant):
    """At the end of a page that may not be read; wide enough for every vector."""
    import ctypes
    import mmap

    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
    height, width = 10, 33
    image = np.frombuffer(memory, np.uint8, height * width * 3, offset=page - height * width * 3)
    image = image.reshape(height, width, 3)
    image[:] = photo(height, width)
    for target in ((20, 66), (10, 40), (7, 20), (11, 34)):
        np.testing.assert_array_equal(native.resize_bilinear(image, *target), reference(image, *target))
    assert libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 3) == 0


@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_threads_gives_the_same(variant, threads):
    image = photo(200, 170)
    one = native.resize_bilinear(image, 333, 301, threads=1)
    np.testing.assert_array_equal(native.resize_bilinear(image, 333, 301, threads=threads), one)


def test_what_is_refused(variant):
    image = photo(5, 6)
    for out, message in [
        (np.empty((4, 4, 3), np.float32), "writable uint8"),
        (np.empty((4, 5, 3), np.uint8), "writable uint8"),
        (np.empty((4, 8, 3), np.uint8)[:, ::2], "C order"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.resize_bilinear(image, 4, 4, out=out)
    with pytest.raises(ValueError, match="threads"):
        native.resize_bilinear(image, 4, 4, threads=0)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    target=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    channels=st.integers(1, 5),
    variant=st.sampled_from(VARIANTS),
    seed=st.integers(0, 99),
)
def test_any_sizes(source, target, channels, variant, seed):
    image = photo(*source, channels, seed)
    with native.using(variant):
        np.testing.assert_array_equal(native.resize_bilinear(image, *target), reference(image, *target))
