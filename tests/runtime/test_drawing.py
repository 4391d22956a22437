"""Pictures: what is drawn, where, and that it stays inside and legible at any size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from regionrt.runtime.drawing import MASK_OPACITY, draw_detections, label_colour, text_colour
from regionrt.runtime.errors import ImageError
from regionrt.runtime.results import Detections

NAMES = ("__background__", "person", "a very long name of a class that no thumbnail can hold")


def one(
    size: tuple[int, int], box: tuple[float, ...], label: int = 1, score: float = 0.87, masks: bool = False
) -> Detections:
    return Detections(
        np.array([box], np.float32),
        np.array([score], np.float32),
        np.array([label], np.int32),
        size,
        NAMES,
        np.ones((1, 28, 28), np.float32) if masks else None,
    )


def test_a_box_in_its_labels_colour_and_nothing_far_from_it() -> None:
    photo = np.full((400, 500, 3), 128, np.uint8)
    picture = one((400, 500), (100, 150, 300, 350)).draw(photo)
    assert picture.shape == photo.shape
    assert picture.dtype == np.uint8
    assert (photo == 128).all()  # the photo itself is untouched
    for y, x in ((150, 250), (349, 250), (250, 100), (250, 299)):
        assert tuple(picture[y, x]) == label_colour(1)
    changed = np.argwhere((picture != 128).any(axis=2))
    assert (changed.min(axis=0) >= (130, 95)).all()  # the label stands above the box
    assert (changed.max(axis=0) <= (355, 305)).all()
    assert (picture[200:300, 150:250] == 128).all()


def test_the_score_threshold() -> None:
    photo = np.full((100, 100, 3), 128, np.uint8)
    found = one((100, 100), (20, 20, 80, 80), score=0.4)
    np.testing.assert_array_equal(found.draw(photo), photo)
    assert (found.draw(photo, score=0.3) != photo).any()


def test_masks_are_blended() -> None:
    photo = np.full((200, 200, 3), 100, np.uint8)
    picture = one((200, 200), (50, 50, 150, 150), masks=True).draw(photo)
    expected = np.rint(100 * (1 - MASK_OPACITY) + np.array(label_colour(1)) * MASK_OPACITY)
    np.testing.assert_allclose(picture[120, 100], expected, atol=1)
    assert (picture[20, 180] == 100).all()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (16, 300), (300, 16), (48, 64), (480, 640), (3000, 4000)])
@pytest.mark.parametrize("label", [1, 2])
def test_every_size_and_every_place(size: tuple[int, int], label: int) -> None:
    height, width = size
    photo = np.full((*size, 3), 60, np.uint8)
    boxes = [(0, 0, width, height), (width * 0.9, height * 0.9, width, height), (0, 0, 0, 0), (width / 2, 0, width, 1)]
    for box in boxes:
        assert one(size, box, label).draw(photo).shape == photo.shape


@pytest.mark.parametrize("size", [(120, 160), (480, 640), (3000, 4000)])
def test_labels_grow_with_the_photo(size: tuple[int, int]) -> None:
    """Above the box: a filled label at least 11 pixels and about 1/35 of the photo high, and contrasting text on it."""
    photo = np.full((*size, 3), 60, np.uint8)
    top = round(size[0] * 0.5)
    label = one(size, (size[1] * 0.1, top, size[1] * 0.9, size[0] * 0.95)).draw(photo)[: top - 1]
    filled = (label == label_colour(1)).all(axis=2)
    places = np.argwhere(filled)
    (y0, x0), (y1, x1) = places.min(axis=0), places.max(axis=0) + 1
    assert max(11, size[0] / 35) <= y1 - y0 <= max(20, size[0] / 20)
    towards = np.array(text_colour(label_colour(1))) - label_colour(1)
    toned = (label[y0:y1, x0:x1] - np.array(label_colour(1))) @ towards / (towards @ towards)  # 0: fill, 1: full text
    assert toned.min() >= -0.05
    assert toned.max() > 0.9
    assert 0.05 < (toned > 0.4).mean() < 0.6


def test_labels_do_not_hide_each_other() -> None:
    photo = np.full((300, 300, 3), 128, np.uint8)
    boxes = np.array([[100, 100, 200, 200], [101, 101, 201, 201]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([1, 1], np.int32), (300, 300), NAMES)
    single = (found[:1].draw(photo) == label_colour(1)).all(axis=2).sum()
    double = (found.draw(photo) == label_colour(1)).all(axis=2).sum()
    assert double > single * 1.3


def test_colours_differ_between_neighbours_and_text_contrasts() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:  # WCAG 2.1
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    colours = [label_colour(label) for label in range(1, 92)]
    assert len(set(colours)) == 91
    for one_colour, other in pairwise(colours):
        assert np.abs(np.subtract(one_colour, other)).sum() > 150
    for colour in colours:
        low, high = sorted((luminance(colour), luminance(text_colour(colour))))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA


def test_refusals() -> None:
    found = one((100, 100), (20, 20, 80, 80))
    with pytest.raises(ValueError, match="belong to a photo"):
        draw_detections(np.zeros((90, 100, 3), np.uint8), found)
    with pytest.raises(ImageError, match="RGB uint8"):
        draw_detections(np.zeros((100, 100), np.uint8), found)
