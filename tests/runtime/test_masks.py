"""Masks: pasted as torchvision pastes them; RLE as pycocotools writes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from regionrt.runtime.masks import (
    Crop,
    full_mask,
    paste_crop,
    rle_area,
    rle_decode,
    rle_encode,
    rle_encode_crop,
)
from regionrt.runtime.native.masks import paste_probabilities

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # small tensors: threads only cost
roi_heads = pytest.importorskip("torchvision.models.detection.roi_heads")
coco = pytest.importorskip("pycocotools.mask")

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30)))


def torchvision_paste(roi_mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    masks, boxes = torch.from_numpy(roi_mask)[None, None], torch.from_numpy(box)[None]
    return roi_heads.paste_masks_in_image(masks, boxes, size)[0, 0].numpy()


def random_case(rng: np.random.Generator, side: int, size: tuple[int, int], stretch: float) -> tuple[np.ndarray, ...]:
    """A box of which some is inside the photo: torchvision fails on one that lies wholly outside."""
    inside = rng.random(2) * 0.9 + 0.05
    other = rng.random(2) * (1 + 2 * stretch) - stretch
    box = np.sort([inside, other], axis=0) * (size[1], size[0])
    return rng.random((side, side)).astype(np.float32), box.ravel().astype(np.float32)


@pytest.mark.parametrize("side", [14, 28, 7])
@pytest.mark.parametrize("size", [(120, 160), (160, 90), (33, 33)])
@pytest.mark.parametrize("stretch", [0.0, 0.3])
def test_paste_is_torchvisions(side: int, size: tuple[int, int], stretch: float) -> None:
    """5e-7: float32 sums of four products, in torch fused. With stretch the boxes stick out of the photo."""
    rng = np.random.default_rng(side)
    for _ in range(40):
        roi_mask, box = random_case(rng, side, size, stretch)
        expected = torchvision_paste(roi_mask, box, size)
        y, x, part = paste_probabilities(roi_mask, box, size)
        found = np.zeros(size, np.float32)
        found[y : y + part.shape[0], x : x + part.shape[1]] = part
        np.testing.assert_allclose(found, expected, atol=5e-7)
        clear = np.abs(expected - 0.5) > 1e-6
        np.testing.assert_array_equal(full_mask(paste_crop(roi_mask, box, size), size)[clear], (expected > 0.5)[clear])


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 5), (5.2, 5.9, 5.3, 6.0), (0, 0, 1, 40), (0, 0, 40, 30), (39, 29, 40, 30), (39.9, 0, 40, 30)]
)
def test_paste_of_tiny_thin_and_whole_boxes(box: tuple[float, ...]) -> None:
    roi_mask, corners = np.full((28, 28), 0.9, np.float32), np.array(box, np.float32)
    expected = torchvision_paste(roi_mask, corners, (30, 40)) > 0.5
    np.testing.assert_array_equal(full_mask(paste_crop(roi_mask, corners, (30, 40)), (30, 40)), expected)


def test_a_box_outside_the_photo_gives_an_empty_mask() -> None:
    for box in ((50, 50, 60, 60), (-30, -30, -10, -10)):
        crop = paste_crop(np.ones((14, 14), np.float32), np.array(box, np.float32), (30, 40))
        assert not full_mask(crop, (30, 40)).any()
        assert rle_area(rle_encode_crop(crop, (30, 40))) == 0


def test_paste_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[M, M\]"):
        paste_probabilities(np.zeros((14, 13), np.float32), np.zeros(4, np.float32), (10, 10))


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_rle_is_pycocotools_byte_for_byte(mask: np.ndarray) -> None:
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = rle_encode(mask)
    assert found == {"size": list(expected["size"]), "counts": expected["counts"].decode()}
    np.testing.assert_array_equal(rle_decode(found), mask)
    assert rle_area(found) == mask.sum() == coco.area(expected)


@settings(max_examples=200, deadline=None)
@given(MASKS, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_the_rle_of_a_crop_is_that_of_the_whole(mask: np.ndarray, y: int, x: int, below: int, right: int) -> None:
    size = (y + mask.shape[0] + below, x + mask.shape[1] + right)
    crop = Crop(y, x, mask)
    assert rle_encode_crop(crop, size) == rle_encode(full_mask(crop, size))


def test_long_runs_and_large_photos() -> None:
    """Counts of more than one five-bit group, and differences below zero."""
    mask = np.zeros((3000, 4000), bool)
    mask[10:2990, 5:1800] = True
    mask[:, 3000:3500] = True
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle_encode(mask)["counts"].encode() == expected["counts"]
    np.testing.assert_array_equal(rle_decode(rle_encode(mask)), mask)


def test_decode_takes_bytes_and_plain_counts() -> None:
    mask = np.random.default_rng(0).random((20, 31)) > 0.6
    compressed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(rle_decode(compressed), mask)
    flat = mask.ravel(order="F")
    counts, previous, run = [], False, 0
    for value in flat:
        if value != previous:
            counts.append(run)
            previous, run = value, 0
        run += 1
    counts.append(run)
    np.testing.assert_array_equal(rle_decode({"size": [20, 31], "counts": counts}), mask)


@pytest.mark.parametrize("counts", ["", "5", "zzz", [3, 4], [-1, 21], "P", "\u20ac", "o" * 30])
def test_an_rle_that_does_not_add_up(counts: object) -> None:
    with pytest.raises(ValueError, match="RLE"):
        rle_decode({"size": [4, 5], "counts": counts})
