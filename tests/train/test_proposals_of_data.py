"""Selective search on data: the same boxes at every call, kept by the image, computed in parallel, and their recall."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
import pytest

from regionrt.runtime.selective_search import SelectiveSearch, _ranked
from regionrt.train.data import open_data
from regionrt.train.data.proposals import IOUS, KeptProposals, compute_proposals, kept_for, recall
from regionrt.train.data.sample import Sample

SPEC = "shapes:test=3,size=64x64"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "regionrt" / "proposals"


def square(left=20, top=12, side=24):
    image = np.full((48, 80, 3), 30, np.uint8)
    image[top : top + side, left : left + side] = (220, 40, 40)
    return image


def test_a_square_is_found_and_boxes_lie_in_the_photo():
    pytest.importorskip("cv2")
    boxes = SelectiveSearch()(square())
    assert boxes.dtype == np.float32
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [80, 48]).all()
    assert np.abs(boxes - [20, 12, 44, 36]).max(1).min() <= 3


def test_every_call_gives_the_same_boxes_in_the_same_order():
    pytest.importorskip("cv2")
    image = open_data(SPEC, "test")[0].image()
    one, other = (SelectiveSearch(width=64)(image) for _ in range(2))
    assert len(one) > 5
    np.testing.assert_array_equal(one, other)


def test_a_resized_search_comes_back_in_pixels_of_the_photo():
    pytest.importorskip("cv2")
    large = square().repeat(4, 0).repeat(4, 1)
    boxes = SelectiveSearch(width=80)(large)
    assert np.abs(boxes / 4 - [20, 12, 44, 36]).max(1).min() <= 3


def test_a_photo_of_one_row_has_nothing_to_segment():
    pytest.importorskip("cv2")
    assert SelectiveSearch()(np.zeros((1, 90, 3), np.uint8)).shape == (0, 4)


def test_ranking_keeps_each_box_once_and_large_ones_early():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 50, (300, 1))], 1).astype(np.float32)
    ranked = _ranked(np.concatenate([boxes, boxes[:40]]))
    assert sorted(map(tuple, ranked)) == sorted(map(tuple, boxes))
    areas = (ranked[:, 2:] - ranked[:, :2]).prod(1)
    assert areas[:100].mean() > 1.3 * areas[200:].mean()
    np.testing.assert_array_equal(ranked, _ranked(boxes[::-1]))


class Counting(SelectiveSearch):
    """Counts what it is asked for."""

    asked: ClassVar[Counter] = Counter()

    def __call__(self, image):
        self.asked[image.tobytes()] += 1
        return np.array([[1, 2, 30, 40]], np.float32)


def test_what_was_found_is_kept_by_pixels_and_options(cache):
    Counting.asked.clear()
    image = square()
    for _ in range(3):
        assert KeptProposals(Counting())(image).tolist() == [[1, 2, 30, 40]]
    assert sum(Counting.asked.values()) == 1
    KeptProposals(Counting())(square(left=21))
    KeptProposals(Counting(k=31))(image)
    assert sum(Counting.asked.values()) == 3
    assert len(list(cache.rglob("*.npy"))) == 3


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00", "nan", "shape", "object"])
def test_a_damaged_file_is_computed_anew(cache, content):
    Counting.asked.clear()
    kept, image = KeptProposals(Counting()), square()
    kept(image)
    (file,) = cache.rglob("*.npy")
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        wrong = {"nan": np.full((1, 4), np.nan, np.float32), "shape": np.zeros((3, 5), np.float32),
                 "object": np.array([{"a": 1}], object)}[content]  # fmt: skip
        np.save(file, wrong, allow_pickle=True)
    assert kept(image).tolist() == [[1, 2, 30, 40]]
    assert sum(Counting.asked.values()) == 2
    assert kept.known(image) is not None


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "regionrt").write_text("a file where the folder would be")
    assert len(KeptProposals(Counting())(square())) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_split_is_computed_once(workers, cache):
    pytest.importorskip("cv2")
    data, search, told = open_data(SPEC, "test"), SelectiveSearch(width=64), []
    assert compute_proposals(data, search, workers=workers, progress=lambda *done: told.append(done)) == 3
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert compute_proposals(data, search, workers=workers) == 0
    kept = KeptProposals(search)
    for index in range(3):
        np.testing.assert_array_equal(kept.known(data[index].image()), search(data[index].image()))


class TwoObjects:
    """One image: an object that the proposals have exactly, one that they cover by half, one to be ignored."""

    labels = ("__background__", "whole", "half")
    split = "test"
    has_masks = False
    dropped: ClassVar[Counter] = Counter()

    def __len__(self):
        return 1

    def __getitem__(self, index):
        boxes = np.array([[1, 2, 30, 40], [1, 2, 30, 21], [60, 0, 70, 9]], np.float32)
        return Sample(
            0, "x", boxes, np.array([1, 2, 2]), None, np.array([False, False, True]), np.zeros(3), (48, 80), square()
        )


def test_recall_is_the_share_of_objects_that_a_box_covers():
    found = recall(TwoObjects(), Counting(), most=5)
    assert found.objects == {"whole": 1, "half": 1, "all": 2}
    assert found.by_iou["whole"] == [1.0] * len(IOUS)
    assert found.by_iou["half"] == [1.0] + [0.0] * (len(IOUS) - 1)  # 19 of 38 rows: IoU 0.5
    assert found.by_iou["all"][:2] == [1.0, 0.5]
    assert found.by_count == [(5, 1.0)]
    assert found.boxes_per_image == 1


def test_predictors_of_nets_without_proposals_are_given_none():
    assert kept_for(object(), [square()]) == ()
