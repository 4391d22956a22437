"""evaluate: from a Predictor to figures, and AP recomputed from kept predictions."""

import json

import numpy as np
import pytest
from data_folders import HEIGHT, WIDTH, coco_object, voc_object, voc_xml, write_coco, write_voc

from regionrt.runtime.image import Canvas
from regionrt.runtime.predictor import Predictor
from regionrt.runtime.results import Detections
from regionrt.train.data import DataError, open_data
from regionrt.train.evaluate import Evaluation, ap_from_predictions, evaluate, match_predictions

NAMES = ("__background__", "cat", "dog")


class Oracle:
    """A Detector that returns the objects of the data in turn, moved by `shift_px`; `masks`: full ones of 28 × 28."""

    max_batch = 2

    def __init__(self, data, shift_px=0.0, masks=False, labels=None):
        self.labels = data.labels if labels is None else labels
        self._found = []
        for index in range(len(data)):
            sample = data[index]
            count = len(sample.boxes)
            scores = np.linspace(0.9, 0.5, count, dtype=np.float32)
            roi_masks = np.ones((count, 28, 28), dtype=np.float32) if masks else None
            boxes = sample.boxes + np.float32(shift_px)
            labels = sample.labels.astype(np.int32)
            self._found.append(Detections(boxes, scores, labels, sample.size, self.labels, roi_masks))
        self.calls = []

    def batch(self, images):
        start = sum(self.calls)
        self.calls.append(len(images))
        return self._found[start : start + len(images)]


@pytest.fixture
def data(tmp_path):
    annotations = [
        coco_object(1, 1, 3, [10, 10, 40, 40]),
        coco_object(2, 1, 7, [60, 20, 30, 50]),
        coco_object(3, 2, 7, [5, 5, 36, 64]),
    ]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)]
    return open_data(write_coco(tmp_path, annotations, images), "train")


def test_a_perfect_detector_has_one_everywhere(data):
    oracle, told = Oracle(data, masks=True), []
    found = evaluate(oracle, data, progress=lambda done, total: told.append((done, total)))
    assert isinstance(found, Evaluation)
    assert oracle.calls == [2, 1]
    assert told == [(0, 3), (2, 3), (3, 3)]
    for key in ("AP", "AP50", "AP75", "AR100", "voc07_AP50", "voc_AP50", "mask_AP50", "mask_AP75"):
        assert found.metrics[key] == pytest.approx(1.0), key
    assert np.isnan(found.metrics["AP_small"])
    assert found.metrics["AP_medium"] == pytest.approx(1.0)
    assert found.per_class["dog"]["objects"] == 2
    assert found.image_ids == [1, 2, 3]
    assert len(found.predictions) == 3
    assert found.predictions[1]["category_id"] == 2


def test_a_shifted_detector_is_between(data):
    """Shifts of 6 px leave IoU (34/40)² / (2 − (34/40)²) = 0.565 of the cat, and no more of the others."""
    found = evaluate(Oracle(data, shift_px=6), data)
    assert found.per_class["cat"]["AP"] == pytest.approx(0.2)
    assert found.per_class["cat"]["AP50"] == pytest.approx(1.0)
    assert 0 < found.metrics["AP"] < 0.5
    assert "mask_AP" not in found.metrics  # a detector without masks


def test_json_has_no_nan(data):
    found = evaluate(Oracle(data), data, max_images=1)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["metrics"]["AP_small"] is None
    assert content["metrics"]["AP"] == pytest.approx(1.0)
    assert content["images"] == 1
    assert "predictions" not in content
    full = json.loads(json.dumps(found.to_json(predictions=True), allow_nan=False))
    assert full["predictions"] == found.predictions
    assert full["image_ids"] == [1]


def test_a_class_without_objects_is_none_and_left_out(tmp_path):
    xml = voc_xml(voc_object("cat", (11, 11, 50, 50)), voc_object("dog", (1, 1, 90, 70), difficult=1))
    data = open_data(write_voc(tmp_path, {"a": xml}, {"test": ["a"]}), "test")
    found = evaluate(Oracle(data), data)
    assert found.metrics["AP"] == pytest.approx(1.0)
    assert found.metrics["voc_AP50"] == 1.0
    assert np.isnan(found.per_class["dog"]["AP50"])
    assert np.isnan(found.per_class["dog"]["voc07_AP50"])
    assert found.per_class["dog"]["objects"] == 0
    assert found.to_json()["per_class"]["dog"]["AP"] is None


def test_a_predictor_of_the_runtime(data):
    """Through canvas and back: the photos are resized to half and padded, the runner answers in canvas pixels."""
    boxes_px = [[(10, 10, 50, 50, 1), (60, 20, 90, 70, 2)], [(5, 5, 41, 69, 2)], []]
    seen = []

    class Runner:
        name = "fixed"

        def run(self, images, image_sizes):
            assert images.shape[1:] == (64, 64, 3)
            np.testing.assert_array_equal(image_sizes, [[40, 50]] * len(images))
            out = {
                "num_detections": np.zeros(len(images), np.int32),
                "boxes": np.zeros((len(images), 5, 4), np.float32),
                "scores": np.full((len(images), 5), -1, np.float32),
                "labels": np.full((len(images), 5), -1, np.int32),
                "overflow": np.zeros(len(images), np.int32),
            }
            for row in range(len(images)):
                objects = boxes_px[len(seen)]
                seen.append(int(images[row, 0, 0, 0]))
                out["num_detections"][row] = len(objects)
                for slot, (*box, label) in enumerate(objects):
                    out["boxes"][row, slot] = np.float32(box) / 2
                    out["scores"][row, slot] = 0.9 - slot / 10
                    out["labels"][row, slot] = label
            return out

        def close(self):
            pass

    canvas = Canvas(height=64, width=64, min_size=40, max_size=64)
    with Predictor(Runner(), canvas, data.labels, {"score": 0.05}, max_batch=2) as predict:
        found = evaluate(predict, data)
    assert found.metrics["AP"] == pytest.approx(1.0)
    assert seen == [int(data[index].image()[0, 0, 0]) for index in range(3)]  # each image once, in order


def test_labels_must_agree(data):
    with pytest.raises(DataError, match="the net has the classes dog, cat, the data cat, dog: open the data"):
        evaluate(Oracle(data, labels=("__background__", "dog", "cat")), data)


def test_max_images_must_be_positive(data):
    with pytest.raises(ValueError, match="max_images: expected at least 1"):
        evaluate(Oracle(data), data, max_images=0)


def test_ap_is_recomputed_from_kept_predictions(data):
    found = evaluate(Oracle(data, shift_px=6, masks=True), data)
    again = ap_from_predictions(data, found.predictions)
    assert set(again) == {"AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75"}
    for key, value in again.items():
        assert value == pytest.approx(found.metrics[key], abs=1e-12)


def test_ap_on_some_of_the_images(data):
    predictions = [one for one in evaluate(Oracle(data), data).predictions if one["image_id"] != 2]
    assert ap_from_predictions(data, predictions)["AP50"] == pytest.approx((1 + 51 / 101) / 2)
    assert ap_from_predictions(data, predictions, image_ids=[1])["AP50"] == pytest.approx(1.0)
    assert ap_from_predictions(data, predictions, image_ids=[2])["AP50"] == 0.0
    # The dog of image 1 found twice, that of image 2 missed once: recall 2/3.
    repeated = ap_from_predictions(data, predictions, image_ids=[1, 2, 1])
    weighted = ap_from_predictions(data, predictions, weights=[2, 1, 0])
    assert repeated["AP50"] == weighted["AP50"] == pytest.approx((1 + 67 / 101) / 2)


def test_a_paired_bootstrap(data):
    exact, shifted = (evaluate(Oracle(data, shift_px=shift), data).predictions for shift in (0, 6))
    weights = np.random.default_rng(0).multinomial(3, np.full(3, 1 / 3), size=50)
    first, second = (match_predictions(data, predictions).ap(weights)["AP"] for predictions in (exact, shifted))
    assert first.shape == (50,)
    known = ~np.isnan(first)
    np.testing.assert_allclose(first[known], 1)
    assert (second[known] < first[known]).all()
    assert np.isnan(second[~known]).all()


def test_ids_that_the_data_does_not_have(data):
    stray = {"image_id": 99, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}
    with pytest.raises(DataError, match=r"predictions: the data .train. has no image 99"):
        match_predictions(data, [stray])
    with pytest.raises(DataError, match=r"image_ids: the data .train. has no image 'a'"):
        ap_from_predictions(data, [], image_ids=["a"])
    with pytest.raises(ValueError, match="expected different ids"):
        match_predictions(data, [], image_ids=[1, 1])


def test_a_detector_that_finds_nothing_has_zero(data):
    found = evaluate(Nothing(data, masks=True), data)
    assert found.metrics["AP"] == found.metrics["mask_AP"] == found.metrics["voc_AP50"] == 0.0
    assert "mask_AP" not in evaluate(Nothing(data), data).metrics  # it has no masks to be judged by


class Nothing(Oracle):
    def batch(self, images):
        return [one[:0] for one in super().batch(images)]
