"""Detections: selection, and their forms for JSON and COCO."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regionrt.runtime.masks import Crop, full_mask, rle_area, rle_decode
from regionrt.runtime.results import Detections

coco = pytest.importorskip("pycocotools.mask")

NAMES = ("__background__", "cat", "dog")


def some(masks: bool = True, size: tuple[int, int] = (60, 80)) -> Detections:
    boxes = np.array([[5, 6, 40, 50], [10.5, 3.25, 75, 58], [0, 0, 2, 2]], np.float32)
    roi_masks = np.random.default_rng(0).random((3, 28, 28)).astype(np.float32) if masks else None
    return Detections(
        boxes, np.array([0.9, 0.5, 0.1], np.float32), np.array([2, 1, 2], np.int32), size, NAMES, roi_masks
    )


def test_length_names_and_selection() -> None:
    found = some()
    assert len(found) == 3
    assert [found.name(index) for index in range(3)] == ["dog", "cat", "dog"]
    assert found.above(0.5).scores.tolist() == [np.float32(0.9)]  # greater, as torchvision's own threshold
    assert len(found.above(0.95)) == 0
    assert found[1].labels.tolist() == [1]
    assert found[-1].labels.tolist() == [2]
    assert found[found.labels == 2].boxes_xyxy[:, 0].tolist() == [5, 0]
    assert found[:2].roi_masks is not None
    assert found[:2].roi_masks.shape == (2, 28, 28)
    with pytest.raises(IndexError):
        found[3]
    with pytest.raises(AttributeError):
        found.scores = found.scores  # type: ignore[misc]


def test_all_forms_of_a_mask_agree() -> None:
    found = some()
    masks = list(found.masks())
    assert [mask.shape for mask in masks] == [(60, 80)] * 3
    for index, (mask, crop) in enumerate(zip(masks, found.crops(), strict=True)):
        assert isinstance(crop, Crop)
        np.testing.assert_array_equal(full_mask(crop, found.image_size), mask)
        np.testing.assert_array_equal(rle_decode(found.rle(index)), mask)
        np.testing.assert_array_equal(coco.decode(found.rle(index)).astype(bool), mask)
        assert rle_area(found.rle(index)) == mask.sum() > 0 or index == 2


def test_masks_are_pasted_only_when_asked_for() -> None:
    """100 masks of a 12-megapixel photo: the crops of small objects take no memory of the photo's size."""
    boxes = np.tile(np.array([100, 100, 160, 150], np.float32), (100, 1))
    found = Detections(
        boxes, np.ones(100, np.float32), np.ones(100, np.int32), (3000, 4000), NAMES, np.ones((100, 28, 28), np.float32)
    )
    assert sum(crop.mask.nbytes for crop in found.crops()) < 100 * 70 * 60
    assert len(found.rle(0)["counts"]) < 1000


def test_without_masks() -> None:
    found = some(masks=False)
    with pytest.raises(ValueError, match="no masks"):
        found.mask(0)
    assert "mask" not in found.to_json()["detections"][0]
    assert "segmentation" not in found.to_coco(1)[0]


def test_json() -> None:
    data = json.loads(json.dumps(some().to_json()))
    assert data["image_size"] == [60, 80]
    first = data["detections"][0]
    assert first["name"] == "dog"
    assert first["label"] == 2
    assert first["box_xyxy"] == [5, 6, 40, 50]
    assert first["score"] == pytest.approx(0.9)
    assert first["mask"]["size"] == [60, 80]


def test_coco_results_are_what_pycocotools_reads() -> None:
    from pycocotools.coco import COCO

    found = some()
    results = json.loads(json.dumps(found.to_coco(7, category_ids=[0, 17, 18])))
    assert [result["category_id"] for result in results] == [18, 17, 18]
    assert results[1]["bbox"] == [10.5, 3.25, 64.5, 54.75]
    assert some().to_coco("name", {1: 17, 2: 18})[0]["category_id"] == 18
    assert some().to_coco("name")[0]["category_id"] == 2
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7, "height": 60, "width": 80}],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [],
        "info": {},
    }
    truth.createIndex()
    loaded = truth.loadRes(results)
    for index, annotation in enumerate(loaded.loadAnns(loaded.getAnnIds())):
        np.testing.assert_array_equal(loaded.annToMask(annotation).astype(bool), found.mask(index))
