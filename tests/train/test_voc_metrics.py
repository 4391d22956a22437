"""VOC AP: by hand, and against a slow reference written from the devkit's description."""

import numpy as np
import pytest
from made_predictions import make_predictions, make_truths
from test_coco_metrics import FAR, A, B, prediction, truth

from regionrt.train.voc_metrics import all_point_ap, eleven_point_ap, voc_class_ap

CLASSES = 4


@pytest.mark.parametrize(
    ("predictions", "eleven", "all_points"),
    [
        ([], 0.0, 0.0),
        ([prediction(1, A, 0.9), prediction(1, B, 0.8)], 1.0, 1.0),
        ([prediction(1, A, 0.9)], 6 / 11, 0.5),  # recall 0.5: levels 0 … 0.5
        ([prediction(1, FAR, 0.9), prediction(1, A, 0.8)], 0.5 * 6 / 11, 0.25),
        # Precision 1 up to recall 0.5, then 2/3: the second detection of A is a false one.
        (
            [prediction(1, A, 0.9), prediction(1, A, 0.8), prediction(1, B, 0.7)],
            (6 + 5 * 2 / 3) / 11,
            0.5 + 0.5 * 2 / 3,
        ),
    ],
)
def test_ap_by_hand(predictions, eleven, all_points):
    assert voc_class_ap([truth(1, [A, B])], predictions, 1) == pytest.approx((eleven, all_points))


def test_an_iou_of_one_half_is_enough():
    objects = [truth(1, [(0, 0, 10, 10)])]
    assert voc_class_ap(objects, [prediction(1, (0, 0, 5, 10), 0.9)], 1) == (1.0, 1.0)
    assert voc_class_ap(objects, [prediction(1, (0, 0, 4.99, 10), 0.9)], 1) == (0.0, 0.0)


def test_difficult_objects_neither_count_nor_cost():
    objects = [truth(1, [A, B], ignore=[False, True])]
    twice_difficult = [prediction(1, B, 0.9), prediction(1, B, 0.8), prediction(1, A, 0.7)]
    assert voc_class_ap(objects, twice_difficult, 1) == (1.0, 1.0)


def test_a_class_without_counted_objects_is_nan():
    for objects in ([truth(1, [])], [truth(1, [A], ignore=[True])], [truth(1, [A], labels=[2])]):
        assert np.isnan(voc_class_ap(objects, [prediction(1, A, 0.9)], 1)).all()


def test_precision_takes_the_best_at_higher_recall():
    recall, precision = np.array([0.25, 0.25, 0.5, 0.75]), np.array([1.0, 0.5, 2 / 3, 0.75])
    assert all_point_ap(recall, precision) == pytest.approx(0.25 + 0.5 * 0.75)
    assert eleven_point_ap(recall, precision) == pytest.approx((3 * 1.0 + 5 * 0.75) / 11)


def reference_ap(truths, predictions, label):
    """VOCevaldet.m in plain Python: one detection after the other, then both averages by their definitions."""
    order = [one.image_id for one in truths]
    known = {one.image_id: one for one in truths}
    detections = [one for one in predictions if one["category_id"] == label]
    detections = sorted(detections, key=lambda one: order.index(one["image_id"]))
    detections = sorted(detections, key=lambda one: one["score"], reverse=True)
    positives = sum(
        int(lab == label and not ign) for one in truths for lab, ign in zip(one.labels, one.ignore, strict=True)
    )
    used, tp, fp, points = set(), 0, 0, []
    for one in detections:
        x1, y1, w, h = one["bbox"]
        best, which = -1.0, None
        objects = known[one["image_id"]]
        for index, (a1, b1, a2, b2) in enumerate(objects.boxes.astype(float).tolist()):
            if objects.labels[index] != label:
                continue
            width, height = min(x1 + w, a2) - max(x1, a1), min(y1 + h, b2) - max(y1, b1)
            if width > 0 and height > 0:
                overlap = width * height / (w * h + (a2 - a1) * (b2 - b1) - width * height)
                if overlap > best:
                    best, which = overlap, index
        if best >= 0.5:
            if objects.ignore[which]:
                continue
            if (one["image_id"], which) in used:
                fp += 1
            else:
                used.add((one["image_id"], which))
                tp += 1
        else:
            fp += 1
        points.append((tp / positives, tp / (tp + fp)))
    eleven = sum(max([p for r, p in points if r >= level / 10], default=0) for level in range(11)) / 11
    area, reached = 0.0, 0.0
    for recall in sorted({r for r, _ in points}):
        area += (recall - reached) * max(p for r, p in points if r >= recall)
        reached = recall
    return eleven, area


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_against_the_reference(ties, seed):
    rng = np.random.default_rng(seed)
    truths = make_truths(rng, 25, CLASSES)
    predictions = make_predictions(rng, truths, CLASSES, ties)
    for label in range(1, CLASSES):
        found = voc_class_ap(truths, predictions, label)
        assert found == pytest.approx(reference_ap(truths, predictions, label), abs=1e-12)
        assert 0.05 < found[1] < 1
