"""Pasted masks: dense, cut out and run-length encoded, by every variant, to the pixel as the plain loops have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

from regionrt.plugins.mask_paste.reference import paste_mask
from regionrt.runtime import native

VARIANTS = native.usable_variants()
SIZE = (61, 83)


@pytest.fixture(params=VARIANTS)
def variant(request):
    with native.using(request.param):
        yield request.param


def some(seed: int, number: int = 9, side: int = 14, size: tuple[int, int] = SIZE):
    """Boxes inside, sticking out, and wholly outside; masks of noise and of blobs."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-0.6, 1.1, (number, 2)) * size[::-1]
    boxes = np.concatenate([corner, corner + rng.uniform(0, 0.9, (number, 2)) * size[::-1]], 1).astype(np.float32)
    boxes[0] = [size[1] + 5, size[0] + 5, size[1] + 9, size[0] + 9]
    boxes[1] = [3, 3, 3, 3]
    masks = rng.random((number, side, side), dtype=np.float32)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    masks[::2] = 1 / (1 + np.exp(6 * (x**2 + y**2 - 0.6)))
    return masks, boxes


def expected(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.stack([paste_mask(mask, box, size) for mask, box in zip(masks, boxes, strict=True)])


def check(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> None:
    """Every form against the loops; outputs are prefilled with garbage."""
    wanted = expected(masks, boxes, size)
    np.testing.assert_array_equal(native.paste_masks(masks, boxes, size), wanted)
    dirty = np.full(wanted.shape, 77, np.uint8)
    assert native.paste_masks(masks, boxes, size, out=dirty) is dirty
    np.testing.assert_array_equal(dirty, wanted)
    crops = native.paste_crops(masks, boxes, size)
    for (y, x, crop), mask in zip(crops, wanted, strict=True):
        assert crop.dtype == bool
        whole = np.zeros(size, np.uint8)
        whole[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        np.testing.assert_array_equal(whole, mask)
    texts = native.paste_rles(masks, boxes, size)
    assert texts == [coco.encode(np.asfortranarray(mask))["counts"].decode() for mask in wanted]


@pytest.mark.parametrize("side", [1, 7, 14, 28])
@pytest.mark.parametrize("size", [SIZE, (1, 90), (90, 1), (17, 16)])
def test_masks_are_the_loops(variant, side, size):
    check(*some(side, 9, side, size), size)


def test_the_loops_are_torchvisions():
    masks, boxes = some(5)
    inside = (boxes[:, 2] > 1) & (boxes[:, 3] > 1) & (boxes[:, 0] < SIZE[1] - 1) & (boxes[:, 1] < SIZE[0] - 1)
    masks, boxes = masks[inside], boxes[inside]  # torchvision fails on what lies outside
    assert len(boxes) >= 4
    pasted = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), SIZE)[:, 0].numpy()
    clear = np.abs(pasted - 0.5) > 1e-6
    np.testing.assert_array_equal(expected(masks, boxes)[clear], (pasted > 0.5)[clear])


def test_a_photo_taller_than_a_strip_of_rows(variant):
    masks, boxes = some(3, 4, 7, (700, 40))
    boxes[2] = [5, -20, 30, 900]
    boxes[3] = [0, 250, 39, 260]
    check(masks, boxes, (700, 40))


def test_runs_that_go_on_from_column_to_column(variant):
    """A mask of the whole photo is one run; its neighbours begin and end at the photo's edges."""
    masks = np.ones((3, 14, 14), np.float32)
    boxes = np.array([[-50, -50, 150, 150], [20, -50, 40, 150], [-30, 20, 150, 40]], np.float32)
    check(masks, boxes, SIZE)
    whole = coco.encode(np.asfortranarray(np.ones(SIZE, np.uint8)))["counts"].decode()
    assert native.paste_rles(masks[:1], boxes[:1], SIZE) == [whole]


def test_no_masks_and_no_pixels(variant):
    none = np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32)
    assert native.paste_masks(*none, SIZE).shape == (0, *SIZE)
    assert native.paste_crops(*none, SIZE) == []
    assert native.paste_rles(*none, SIZE) == []
    one = np.ones((1, 2, 2), np.float32), np.array([[0, 0, 5, 5]], np.float32)
    assert native.paste_masks(*one, (0, 7)).shape == (1, 0, 7)
    assert native.paste_rles(*one, (0, 7)) == ["0"]


def test_noise_makes_texts_longer_than_the_first_guess(variant):
    masks, boxes = np.random.default_rng(0).random((3, 56, 56), dtype=np.float32), np.zeros((3, 4), np.float32)
    boxes[:, 2:] = 140
    size = (140, 140)
    texts = native.paste_rles(masks, boxes, size)
    assert max(map(len, texts)) > 2048
    assert texts == [coco.encode(np.asfortranarray(m))["counts"].decode() for m in expected(masks, boxes, size)]


def test_a_mask_of_nan_has_no_pixels(variant):
    masks, boxes = some(0)
    masks[:] = np.nan
    assert not native.paste_masks(masks, boxes, SIZE).any()


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_gives_the_same(variant, threads):
    masks, boxes = some(8, 30, 28, (600, 300))
    one = native.paste_masks(masks, boxes, (600, 300), threads=1)
    np.testing.assert_array_equal(native.paste_masks(masks, boxes, (600, 300), threads=threads), one)
    assert native.paste_rles(masks, boxes, (600, 300), threads=threads) == native.paste_rles(
        masks, boxes, (600, 300), threads=1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": np.zeros((2, 7, 6), np.float32)}, r"\[D, M, M\]"),
        ({"masks": np.zeros((2, 7, 7), np.float64)}, "expected float32, got float64"),
        ({"boxes": np.zeros((3, 4), np.float32)}, r"boxes: expected the shape \[2, 4\]"),
        ({"boxes": np.full((2, 4), np.nan, np.float32)}, "finite"),
        ({"boxes": np.full((2, 4), 1e10, np.float32)}, "finite"),
        ({"size": (-1, 5)}, "image_size"),
    ],
)
def test_what_is_refused(variant, change, message):
    given = {"masks": np.zeros((2, 7, 7), np.float32), "boxes": np.zeros((2, 4), np.float32), "size": SIZE} | change
    for form in (native.paste_masks, native.paste_crops, native.paste_rles):
        with pytest.raises(ValueError, match=message):
            form(given["masks"], given["boxes"], given["size"])


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    corners=st.lists(st.tuples(*[st.floats(-60, 120, width=32)] * 4), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    side=st.integers(1, 9),
    variant=st.sampled_from(VARIANTS),
    seed=st.integers(0, 99),
)
def test_any_boxes(corners, size, side, variant, seed):
    """Also those whose corners are in the wrong order."""
    boxes = np.array(corners, np.float32)
    masks = np.random.default_rng(seed).random((len(boxes), side, side), dtype=np.float32)
    with native.using(variant):
        check(masks, boxes, size)
