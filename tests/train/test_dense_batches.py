"""Label maps on the canvas: in step with the photo through flips and zooms, void outside, any odd size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regionrt.runtime.image import Canvas, Placement
from regionrt.train.batches import Augmentation
from regionrt.train.data import VOID, SemanticSample
from regionrt.train.dense_batches import SemanticCanvases, collate_tensors


class OneImage:
    """An image whose colour says the class of each pixel: 40 · label in red."""

    labels, split, has_masks = ("a", "b", "c", "d"), "train", False

    def __init__(self, height: int, width: int) -> None:
        labels = np.random.default_rng(0).integers(0, 4, (height, width)).astype(np.uint8)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = 40 * labels
        labels[0, 0] = VOID
        self.sample = SemanticSample(1, "x", (height, width), pixels, labels)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> SemanticSample:
        return self.sample


@pytest.mark.parametrize("height", [31, 32, 33])
@pytest.mark.parametrize("width", [47, 48, 49])
def test_photo_and_map_stay_in_step(height: int, width: int) -> None:
    """Sizes a pixel around the stride's multiples; photos are not resized, so the match must be exact."""
    canvas = Canvas(48, 64, 48, 64, 16, enlarge=False)
    items = SemanticCanvases(OneImage(height, width), canvas, Augmentation(flip="both"), 7)
    seen = set()
    for epoch in range(24):
        image, size, labels = items[epoch, 0]
        assert size.tolist() == [height, width]
        assert (labels[height:] == VOID).all()
        assert (labels[:, width:] == VOID).all()
        known = labels != VOID
        assert known.sum() == height * width - 1
        assert torch.equal(labels[known].int() * 40, image[..., 0][known].int())
        seen.add(tuple(labels[:2, :2].flatten().tolist()))
    assert len(seen) == 4  # four ways to flip


def test_a_zoom_cuts_both_alike_and_follows_from_the_seed() -> None:
    canvas = Canvas(64, 64, 64, 64, 16)
    made = [SemanticCanvases(OneImage(32, 32), canvas, Augmentation(scale=(2.0, 2.0)), 1) for _ in range(2)]
    (image, size, labels), again = made[0][3, 0], made[1][3, 0]
    assert all(torch.equal(a, b) for a, b in zip((image, size, labels), again, strict=True))
    assert size.tolist() == [64, 64]
    middle = labels[2::4, 2::4]  # 16 px of photo became 64: each is a block of 4
    assert torch.equal(middle, labels[1::4, 1::4])
    assert (image[1::4, 1::4, 0].float() / 40 - middle.float()).abs().mean() < 0.6


def test_batches_are_stacked() -> None:
    items = SemanticCanvases(OneImage(30, 40), Canvas(32, 48, 32, 48, 16, enlarge=False), Augmentation(), 0)
    images, sizes, maps = collate_tensors([items[0, 0], items[1, 0]])
    assert (images.shape, sizes.shape, maps.shape) == ((2, 32, 48, 3), (2, 2), (2, 32, 48))
    assert (images.dtype, maps.dtype) == (torch.uint8, torch.uint8)


@pytest.mark.parametrize("original", [(31, 47), (32, 48), (33, 49), (7, 200), (1, 1)])
@pytest.mark.parametrize("resized", [(31, 47), (32, 48), (33, 49), (64, 64), (1, 1)])
def test_maps_there_and_back(original: tuple[int, int], resized: tuple[int, int]) -> None:
    """To the canvas and back is the same wherever nothing was lost; every pixel is the one whose area holds it."""
    rng = np.random.default_rng(0)
    placement = Placement(original, resized)
    on_canvas = np.full((64, 64), 9, np.uint8)
    on_canvas[: resized[0], : resized[1]] = rng.integers(0, 4, resized)
    back = placement.map_to_original(on_canvas)
    assert back.shape == original
    for y, x in zip(rng.integers(0, original[0], 40), rng.integers(0, original[1], 40), strict=True):
        row, column = (
            (2 * p + 1) * r / (2 * o) for p, r, o in ((y, resized[0], original[0]), (x, resized[1], original[1]))
        )
        assert back[y, x] == on_canvas[int(row), int(column)]
    if original == resized:
        assert np.array_equal(placement.map_to_canvas(back, (64, 64), 9), on_canvas)
