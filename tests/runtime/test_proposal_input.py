"""Proposals from the caller: clipped, counted, padded or refused; and what the Predictor makes of them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import regionrt.runtime as rt
from regionrt.runtime.errors import BackendError, ImageError
from regionrt.runtime.image import Canvas, Placement
from regionrt.runtime.inputs import INPUTS, PROPOSAL_INPUTS, inputs_of, known_inputs, request_of
from regionrt.runtime.predictor import Predictor
from regionrt.runtime.proposals import ProposalInput

CANVAS = Canvas(64, 96, min_size=64, max_size=96, multiple=32)
PHOTO = np.zeros((32, 48, 3), np.uint8)  # twice as large on the canvas
PLACED = [Placement((32, 48), (64, 96))]


class Echo:
    """A runner whose detections are the proposals that it was given."""

    name = "echo"

    def run(self, images: Any, image_sizes: Any, **proposals: np.ndarray) -> dict[str, np.ndarray]:
        boxes, counts = proposals["proposals"], proposals["proposal_counts"]
        real = np.arange(boxes.shape[1]) < counts[:, None]
        return {
            "num_detections": counts,
            "boxes": boxes,
            "scores": np.where(real, np.float32(0.9), np.float32(-1)),
            "labels": np.where(real, 1, -1).astype(np.int32),
            "overflow": np.zeros(len(images), np.int32),
        }

    def close(self) -> None:
        pass


@pytest.fixture
def predict() -> Predictor:
    return Predictor(Echo(), CANVAS, ("__background__", "thing"), {"score": 0.05}, proposals=ProposalInput(3))


def test_boxes_come_to_the_net_in_canvas_pixels_and_behind_them_zeros() -> None:
    taken = ProposalInput(3).place([PHOTO], [[[1, 2, 20, 30]]], PLACED)
    assert taken["proposals"].dtype == np.float32
    assert taken["proposal_counts"].dtype == np.int32
    assert taken["proposals"].tolist() == [[[2, 4, 40, 60], [0] * 4, [0] * 4]]
    assert taken["proposal_counts"].tolist() == [1]


def test_each_photo_has_its_own_and_results_keep_their_order(predict: Predictor) -> None:
    boxes = [np.array([[i, i, 10 + i, 12 + i]], np.float64) for i in range(6)]
    found = predict.batch([PHOTO] * 6, boxes)
    assert [one.boxes_xyxy.tolist() for one in found] == [[[i, i, 10 + i, 12 + i]] for i in range(6)]


def test_what_reaches_beyond_the_photo_is_clipped(predict: Predictor) -> None:
    assert predict(PHOTO, [[-5, -5, 100, 20]]).boxes_xyxy.tolist() == [[0, 0, 48, 20]]


@pytest.mark.parametrize("box", [[60, 5, 70, 9], [5, 40, 9, 50], [4, 4, 4, 9], [9, 9, 4, 4], [-9, 1, 0, 5]])
def test_what_has_no_area_in_the_photo_is_left_out_and_counted(predict: Predictor, box: list[int]) -> None:
    with pytest.warns(UserWarning, match="1 proposals have no area inside their photo"):
        assert predict(PHOTO, [box, [1, 1, 9, 9]]).boxes_xyxy.tolist() == [[1, 1, 9, 9]]


def test_of_too_many_the_first_are_taken_and_the_others_counted(predict: Predictor) -> None:
    boxes = [[0, 0, 5 + i, 5] for i in range(7)]
    with pytest.warns(UserWarning, match="4 proposals are left out, the net takes the first 3"):
        assert predict(PHOTO, boxes).boxes_xyxy.tolist() == boxes[:3]


@pytest.mark.parametrize("none", [[], np.zeros((0, 4)), np.zeros(0)])
def test_no_proposals_are_no_detections(predict: Predictor, none: Any) -> None:
    assert len(predict(PHOTO, none)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_boxes_that_are_not_finite_are_refused_with_their_number(predict: Predictor, value: float) -> None:
    with pytest.raises(rt.ProposalError, match=r"image 0: 1 of 2 hold NaN or infinite"):
        predict(PHOTO, [[1, 1, 9, 9], [1, value, 9, 9]])


@pytest.mark.parametrize(
    "boxes", [[[1, 2, 3]], [1, 2, 3, 4], [[1, 2, 3, 4], [1, 2]], "boxes", [[True] * 4], [["a"] * 4]]
)
def test_what_is_no_list_of_boxes_is_refused(predict: Predictor, boxes: Any) -> None:
    with pytest.raises(rt.ProposalError, match=r"image 0: expected boxes \[M, 4\]"):
        predict(PHOTO, boxes)


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_proposals_as_photos(predict: Predictor, count: int) -> None:
    with pytest.raises(rt.ProposalError, match="their numbers differ"):
        predict.batch([PHOTO] * 2, [[[1, 1, 9, 9]]] * count)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_is_prepared_has_proposals_for_each_photo(predict: Predictor, count: int) -> None:
    with pytest.raises(rt.ProposalError, match=f"for each of 2 photos, found {count}"):
        predict.prepare([PHOTO] * 2, [[[1, 1, 9, 9]]] * count)


def test_a_net_that_finds_its_own_takes_none() -> None:
    own = Predictor(Echo(), CANVAS, ("__background__", "thing"), {"score": 0.05})
    with pytest.raises(rt.ProposalError, match="finds its proposals itself"):
        own(PHOTO, [[1, 1, 9, 9]])


def test_a_stream_takes_them_in_step_and_passes_over_those_that_do_not_fit(predict: Predictor, tmp_path: Any) -> None:
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(PHOTO).save(path)
    told: list[tuple[str, ImageError]] = []
    boxes = [[[1, 1, 9, 9]], [[1, np.nan, 9, 9]], [[3, 3, 9, 9]]]
    found = list(predict.stream(paths, lambda name, error: told.append((name, error)), boxes))
    assert [(name, one.boxes_xyxy.tolist()) for name, one in found] == [
        (str(paths[0]), [[1, 1, 9, 9]]), (str(paths[2]), [[3, 3, 9, 9]])
    ]  # fmt: skip
    assert [name for name, _ in told] == [str(paths[1])]


def test_without_opencv_the_message_says_what_to_do(predict: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(BackendError, match=r"pass predict\(image, proposals=boxes\), or pip install"):
        predict(PHOTO)
    assert len(predict(PHOTO, [[1, 1, 9, 9]])) == 1  # and those that are given need none


def test_a_photo_without_its_own_is_searched(predict: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    found = np.array([[2, 2, 8, 8]] * 5, np.float32)
    monkeypatch.setattr(rt.SelectiveSearch, "__call__", lambda self, image: found)
    ours, theirs = predict.batch([PHOTO] * 2, [None, [[1, 1, 9, 9]]])
    assert ours.boxes_xyxy.tolist() == [[2, 2, 8, 8]] * 3  # of its own the first P, without a warning
    assert theirs.boxes_xyxy.tolist() == [[1, 1, 9, 9]]


@pytest.mark.parametrize(
    "changes", [{"mode": "slow"}, {"width": 3}, {"k": 0}, {"step": 1.5}, {"speed": 1}, {"width": True}]
)
def test_a_search_that_a_manifest_cannot_mean_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(rt.BundleError, match="selective search"):
        rt.SelectiveSearch.from_json(changes)


def test_inputs_are_known_with_and_without_proposals() -> None:
    both = INPUTS | PROPOSAL_INPUTS
    assert known_inputs(dict(reversed(both.items())), "x") == both
    assert inputs_of([{"name": name} for name in both]) == both
    assert inputs_of([]) == INPUTS
    with pytest.raises(BackendError, match="no detector of ours"):
        known_inputs({**INPUTS, "proposals": np.dtype(np.float32)}, "x")
    with pytest.raises(BackendError, match="expected the inputs images, image_sizes, found"):
        request_of(INPUTS, 0, 0, {"proposals": 0, "proposal_counts": 0})
    with pytest.raises(BackendError, match="expected the inputs images, image_sizes, proposals"):
        request_of(both, 0, 0, {})
