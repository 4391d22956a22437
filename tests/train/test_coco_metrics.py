"""COCO AP: pycocotools' figures, and resampling against data sets that are literally duplicated."""

import contextlib
import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from made_predictions import SIZE, make_predictions, make_truths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from regionrt.train.coco_metrics import Matches, Truth

CLASSES = 4
LABELS = ("__background__", "a", "b", "c", "d")
ROUNDING = 1e-12  # sums of float64 in another order
RESAMPLED = ("AP", "AP50", "AP75")


def truth(image_id, boxes, labels=None, ignore=None):
    edges = np.float32(boxes).reshape(-1, 4)
    count = len(edges)
    areas = (edges[:, 2] - edges[:, 0]) * (edges[:, 3] - edges[:, 1])
    labels = np.ones(count, dtype=int) if labels is None else np.array(labels)
    return Truth(image_id, SIZE, edges, labels, np.array(ignore or [False] * count, dtype=bool), areas, None)


def prediction(image_id, box, score, label=1):
    x1, y1, x2, y2 = box
    return {"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


A, B, FAR = (0, 0, 10, 10), (20, 20, 40, 40), (70, 70, 80, 80)


@pytest.mark.parametrize(
    ("predictions", "ap50"),
    [
        ([], 0.0),
        ([prediction(1, A, 0.9), prediction(1, B, 0.8)], 1.0),
        ([prediction(1, FAR, 0.9), prediction(1, A, 0.8), prediction(1, B, 0.7)], 2 / 3),
        # Recall 0.5 at precision 1, nothing after: the levels 0, 0.01, …, 0.5 of the 101.
        ([prediction(1, A, 0.9)], 51 / 101),
        ([prediction(1, A, 0.9), prediction(1, FAR, 0.8), prediction(1, B, 0.7)], (51 + 50 * 2 / 3) / 101),
        ([prediction(1, A, 0.9), prediction(1, A, 0.8), prediction(1, B, 0.7)], (51 + 50 * 2 / 3) / 101),
    ],
)
def test_ap_by_hand(predictions, ap50):
    matches = Matches([truth(1, [A, B])], predictions, LABELS[:2])
    assert matches.summary()[0]["AP50"] == pytest.approx(ap50, abs=ROUNDING)
    assert matches.resampled(np.ones((1, 1), int))["AP50"] == pytest.approx([ap50], abs=ROUNDING)


def test_iou_thresholds_by_hand():
    """IoU 0.64 counts at 0.50, 0.55 and 0.60 of the ten thresholds."""
    matches = Matches([truth(1, [(0, 0, 100, 100)])], [prediction(1, (0, 0, 64, 100), 0.9)], LABELS[:2])
    found = matches.summary()[0]
    assert found["AP"] == pytest.approx(0.3)
    assert (found["AP50"], found["AP75"]) == pytest.approx((1.0, 0.0))
    assert found["AP_large"] == pytest.approx(0.3)
    assert np.isnan(found["AP_small"])


def test_objects_to_ignore_neither_count_nor_cost():
    crowd = truth(1, [A, (30, 30, 110, 110)], ignore=[False, True])
    within_crowd = [prediction(1, (40, 40, 60, 60), 0.95), prediction(1, (60, 60, 80, 80), 0.94)]
    found = Matches([crowd], [*within_crowd, prediction(1, A, 0.5)], LABELS[:2]).summary()[0]
    assert found["AP50"] == pytest.approx(1.0)


def test_a_class_without_objects_is_nan_and_left_out_of_means():
    predictions = [prediction(1, A, 0.9), prediction(1, FAR, 0.9, label=2)]
    matches = Matches([truth(1, [A])], predictions, LABELS)
    found, per_class = matches.summary()
    assert found["AP50"] == pytest.approx(1.0)
    assert per_class[0] == pytest.approx({"AP": 1.0, "AP50": 1.0})
    assert all(np.isnan(value) for values in per_class[1:] for value in values.values())
    assert matches.resampled(np.array([[1], [0]]))["AP"] == pytest.approx([1.0, np.nan], nan_ok=True)


def test_nothing_at_all():
    matches = Matches([truth(1, [])], [], LABELS)
    assert all(np.isnan(value) for value in matches.summary()[0].values())
    assert np.isnan(matches.resampled(np.ones((2, 1), int))["AP"]).all()


def test_summary_is_what_pycocotools_prints_for_files(tmp_path):
    """The same data through files, loadRes and summarize(), as everybody uses pycocotools."""
    rng = np.random.default_rng(5)
    truths = [replace(one, image_id=index) for index, one in enumerate(make_truths(rng, 30, CLASSES), start=1)]
    predictions = make_predictions(rng, truths, CLASSES, ties=True)
    annotations = [
        {
            "image_id": one.image_id,
            "category_id": int(label),
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": float(area),
            "iscrowd": int(ignore),
        }
        for one in truths
        for box, label, area, ignore in zip(
            one.boxes.astype(float).tolist(), one.labels, one.areas, one.ignore, strict=True
        )
    ]
    content = {
        "images": [{"id": one.image_id, "height": SIZE[0], "width": SIZE[1]} for one in truths],
        "annotations": [{"id": index, **one} for index, one in enumerate(annotations, start=1)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(LABELS) if label],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps(predictions))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "truth.json")
        reference = COCOeval(coco, coco.loadRes(str(tmp_path / "found.json")), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    found = Matches(truths, predictions, LABELS).summary()[0]
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
    # Where there is no object pycocotools says −1.
    assert [found[name] if found[name] == found[name] else -1 for name in names] == reference.stats[:9].tolist()
    assert 0.1 < found["AP"] < 0.9


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.2])
def test_the_identity_sample_is_pycocotools_accumulate(ties, ignored):
    rng = np.random.default_rng(1)
    truths = make_truths(rng, 40, CLASSES, ignored)
    matches = Matches(truths, make_predictions(rng, truths, CLASSES, ties), LABELS)
    reference, _ = matches.summary()
    found = matches.resampled(np.ones((1, 40), dtype=int))
    for name in RESAMPLED:
        assert found[name] == pytest.approx([reference[name]], abs=ROUNDING)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ignored", [0.0, 0.2])
def test_resamples_are_pycocotools_on_literally_duplicated_images(ties, ignored):
    rng = np.random.default_rng(2)
    truths = make_truths(rng, 12, CLASSES, ignored)
    predictions = make_predictions(rng, truths, CLASSES, ties, most=6)
    matches = Matches(truths, predictions, LABELS)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=8)
    assert weights.max() >= 3
    found = matches.resampled(weights)
    for row, times in enumerate(weights):
        copies = [
            (one, replace(one, image_id=(one.image_id, copy)))
            for one, count in zip(truths, times, strict=True)
            for copy in range(count)
        ]
        copied = [
            {**result, "image_id": duplicate.image_id}
            for original, duplicate in copies
            for result in predictions
            if result["image_id"] == original.image_id
        ]
        reference, _ = Matches([duplicate for _, duplicate in copies], copied, LABELS).summary()
        for name in RESAMPLED:
            assert found[name][row] == pytest.approx(reference[name], abs=ROUNDING)


def test_more_than_a_hundred_detections_are_cut_per_image():
    crowded = [prediction(1, FAR, 0.9 - index / 1000) for index in range(100)]
    matches = Matches([truth(1, [A])], [*crowded, prediction(1, A, 0.1)], LABELS[:2])
    assert matches.summary()[0]["AP50"] == 0.0
    assert matches.resampled(np.ones((1, 1), int))["AP50"] == [0.0]


@pytest.mark.parametrize(
    "weights", [np.ones(3, int), np.ones((1, 2), int), np.ones((1, 3)), np.array([[1, -1, 1]])], ids=str
)
def test_weights_that_cannot_be(weights):
    matches = Matches([truth(index, [A]) for index in range(3)], [], LABELS[:2])
    with pytest.raises(ValueError, match="weights: expected"):
        matches.resampled(weights)


def test_pycocotools_is_silent_and_a_bootstrap_takes_seconds(capsys):
    rng = np.random.default_rng(3)
    truths = make_truths(rng, 100, CLASSES)
    predictions = make_predictions(rng, truths, CLASSES, ties=True, most=15)
    matches = Matches(truths, predictions, LABELS)
    matches.summary()
    assert capsys.readouterr().out == ""
    start = time.perf_counter()
    found = matches.resampled(rng.multinomial(100, np.full(100, 0.01), size=200))
    assert time.perf_counter() - start < 8  # takes 1 s alone on one core; pycocotools would take minutes
    assert 0 < found["AP"].std() < 0.2
